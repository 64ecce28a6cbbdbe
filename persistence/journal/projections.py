"""Projections: what the feed comes to, each event counted exactly once however often its maker is killed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeAlias

import attrs
from google.protobuf.message import DecodeError

from persistence.errors import (
    CommitOutcomeUnknownError,
    ETagMismatchError,
    InvalidRequestError,
    StoreBrokenError,
    StoreCorruptError,
    StoreUnavailableError,
    TransactionTooLargeError,
)
from persistence.features import require
from persistence.journal._rows import POSITION_KEY, output_key, projection_partition
from persistence.journal.clock import sleep
from persistence.journal.feed import FeedItem
from persistence.journal.journal import Journal
from persistence.options import prefix_end
from persistence.proto.journal_pb2 import ProjectionRow
from persistence.store import (
    Concurrency,
    DeleteRequest,
    EngineStore,
    GetRequest,
    Operation,
    SetOptions,
    SetRequest,
    Store,
)

__all__ = ["Handler", "Output", "Projection", "ProjectionOptions"]

_logger = logging.getLogger(__name__)
_MUST_BE_ABSENT: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
_FIRST_PAUSE_NS: Final = 100_000_000
_LONGEST_PAUSE_NS: Final = 10_000_000_000


@attrs.frozen(kw_only=True)
class ProjectionOptions:
    """How a projection works.

    Attributes:
        batch: items of the feed that share a transaction, at most.
    """

    batch: int = 200


class Output:
    """The rows of a projection as its handler sees them: what it has written is there when it reads.

    Nothing is written before the handler has seen all items of a batch; then everything is, together with the
    position. Keys are text of your own.
    """

    def __init__(self, store: EngineStore, partition: str) -> None:
        self._store = store
        self._partition = partition
        self._changed: dict[str, bytes | None] = {}

    async def get(self, key: str) -> bytes | None:
        """A row; None if there is none."""
        if key in self._changed:
            return self._changed[key]
        answer = await self._store.get(GetRequest(key=output_key(key), partition=self._partition))
        return answer.data

    def set(self, key: str, value: bytes) -> None:
        """Write a row."""
        self._changed[key] = value

    def delete(self, key: str) -> None:
        """Delete a row, if there is one."""
        self._changed[key] = None

    async def scan(self, prefix: str = "") -> AsyncIterator[tuple[str, bytes]]:
        """The rows whose keys begin with `prefix`, in order of their keys."""
        start = output_key(prefix)
        changed = {key: self._changed[key] for key in sorted(self._changed) if key.startswith(prefix)}
        waiting = iter([(key, value) for key, value in changed.items() if value is not None])
        pending = next(waiting, None)
        async for item in self._store.scan(self._partition, start, prefix_end(start)):
            key = item.key[len(output_key("")) :]
            while pending is not None and pending[0] < key:
                yield pending
                pending = next(waiting, None)
            if key not in changed:
                yield key, item.value
        while pending is not None:
            yield pending
            pending = next(waiting, None)

    def operations(self) -> list[Operation]:
        """What has changed."""
        return [
            DeleteRequest(key=output_key(key), partition=self._partition)
            if value is None
            else SetRequest(key=output_key(key), value=value, partition=self._partition)
            for key, value in self._changed.items()
        ]

    @property
    def touched(self) -> bool:
        """Whether anything has changed."""
        return bool(self._changed)


Handler: TypeAlias = Callable[[FeedItem, Output], Awaitable[None]]
"""Works one item of the feed into the output; called again for an item whose output was not committed."""


class Projection:
    """Keeps rows that are made from the feed of a journal.

    The rows and the position in the feed are one partition of a store, and change in one transaction. So
    every item counts once: a projection that was killed goes on behind the last item whose rows are there,
    and of several processes that run the same projection, one commits and the others go on behind it.

    What a handler does elsewhere, it may do several times; put an outbox into the rows for that.
    """

    def __init__(
        self,
        journal: Journal,
        name: str,
        handler: Handler,
        *,
        store: Store | None = None,
        options: ProjectionOptions | None = None,
    ) -> None:
        """A projection of that name, in the journal's own store unless another one is given.

        Raises:
            FeatureMissingError: the store lacks etags, transactions or scans.
            InvalidRequestError: the name is empty, or a batch holds nothing.
        """
        self.name: str = name
        self._journal = journal
        self._handler = handler
        self._options = options or ProjectionOptions()
        if not name or self._options.batch < 1:
            raise InvalidRequestError(f"a projection needs a name, not {name!r}, and a batch of at least 1")
        self._store = journal.store if store is None else require(store, EngineStore)
        self._partition = projection_partition(journal.namespace, name)

    def __repr__(self) -> str:
        return f"<Projection {self.name!r} of {self._journal!r}>"

    def output(self) -> Output:
        """The rows, to be read; what is written to it goes nowhere."""
        return Output(self._store, self._partition)

    async def position(self) -> int:
        """The position of the last item that the rows tell of; 0 before the first."""
        return (await self._load())[0].position

    async def catch_up(self) -> int:
        """Work in everything that was committed before; the position then.

        Raises:
            PositionTrimmedError: the feed no longer reaches back to the position: `reset` cannot help either.
            StoreCorruptError: the feed ends before the position, as after a restore from a backup, and new
                events would come at positions that are counted already: `reset` begins again.
            TransactionTooLargeError: the rows of one item do not fit into a transaction of the store.
            Exception: whatever the handler raises. The rows are those of before its batch.
        """
        batch = self._options.batch
        while True:
            row, etag = await self._load()
            if row.resetting:
                await self._clear()
                continue
            items = await self._journal.feed.read(row.position, limit=batch)
            if not items:
                await self._check(row.position)
                return row.position
            output = Output(self._store, self._partition)
            for item in items:
                await self._handler(item, output)
            try:
                await self._commit(ProjectionRow(position=items[-1].position), etag, output)
                behind = await self._journal.feed.known_position() - items[-1].position
                self._journal.observer.lagged(self.name, max(behind, 0))
            except (ETagMismatchError, CommitOutcomeUnknownError):
                # Somebody else runs this projection, or the commit may or may not have come through. The
                # position that is stored tells.
                continue
            except TransactionTooLargeError:
                if len(items) == 1:
                    raise
                batch = max(len(items) // 2, 1)

    async def _check(self, position: int) -> None:
        end = await self._journal.feed.known_position()
        if position > end:
            raise StoreCorruptError(
                f"projection {self.name!r} has come to position {position} of a feed that ends at {end}:"
                " reset it"
            )

    async def run(self) -> None:
        """Work in whatever is committed, until cancelled. A store that cannot be reached is waited for.

        Raises:
            Exception: as `catch_up`, but for `StoreUnavailableError` unless it is a `StoreBrokenError`.
        """
        pause = _FIRST_PAUSE_NS
        async with self._journal.subscribe() as subscription:
            while True:
                try:
                    await self.catch_up()
                except StoreUnavailableError as error:
                    if isinstance(error, StoreBrokenError):
                        raise  # this one does not come back
                    _logger.warning("projection %s waits for its store: %s", self.name, error)
                    await sleep(self._journal.clock, pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_NS)
                    continue
                pause = _FIRST_PAUSE_NS
                await subscription.wait()

    async def lag(self) -> int:
        """How many positions the rows are behind the feed."""
        lag = await self._journal.feed.last_position() - await self.position()
        self._journal.observer.lagged(self.name, lag)
        return lag

    async def reset(self) -> None:
        """Remove all rows, and begin again at the beginning of the feed. If interrupted, it goes on later."""
        while True:
            _, etag = await self._load()
            try:
                await self._commit(ProjectionRow(resetting=True), etag, Output(self._store, self._partition))
            except (ETagMismatchError, CommitOutcomeUnknownError):
                continue
            await self._clear()
            return

    async def _clear(self) -> None:
        """Remove all rows of a projection that is being reset, and the mark last."""
        most = max(min(500, self._store.limits.operations - 1), 1)
        while True:
            row, etag = await self._load()
            if not row.resetting or etag is None:
                return
            start = output_key("")
            items = [
                item async for item in self._store.scan(self._partition, start, prefix_end(start), limit=most)
            ]
            position = ProjectionRow(position=0, resetting=bool(items))
            operations: list[Operation] = [
                self._position_request(position, etag),
                *(DeleteRequest(key=item.key, partition=self._partition) for item in items),
            ]
            try:
                await self._store.multi(operations)
            except (ETagMismatchError, CommitOutcomeUnknownError):
                # The mark is stored, or is not: that tells.
                continue

    async def _load(self) -> tuple[ProjectionRow, str | None]:
        answer = await self._store.get(GetRequest(key=POSITION_KEY, partition=self._partition))
        if answer.data is None:
            return ProjectionRow(), None
        try:
            return ProjectionRow.FromString(answer.data), answer.etag
        except DecodeError as error:
            raise StoreCorruptError(
                f"the position of projection {self.name!r} is damaged: {error}"
            ) from error

    async def _commit(self, row: ProjectionRow, etag: str | None, output: Output) -> None:
        await self._store.multi([self._position_request(row, etag), *output.operations()])

    def _position_request(self, row: ProjectionRow, etag: str | None) -> SetRequest:
        value = row.SerializeToString()
        if etag is None:
            return SetRequest(
                key=POSITION_KEY, value=value, partition=self._partition, options=_MUST_BE_ABSENT
            )
        return SetRequest(key=POSITION_KEY, value=value, partition=self._partition, etag=etag)
