"""A store that fails on demand: for tests of what survives a crash, a lost connection or a slow disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import attrs

from persistence.errors import StoreUnavailableError
from persistence.features import require
from persistence.store import (
    BulkGetResponse,
    Change,
    ChangeKind,
    DeleteRequest,
    EngineStore,
    Feature,
    GetRequest,
    GetResponse,
    Item,
    Limits,
    Metadata,
    Operation,
    SetRequest,
    WatchableStore,
)

__all__ = ["Call", "CutOffError", "FaultyStore"]

AnswerT = TypeVar("AnswerT")


class CutOffError(StoreUnavailableError):
    """The store was cut off, as by a crash of the process or of the line."""


@attrs.frozen
class Call:
    """A call of a store's method, as a hook sees it.

    Attributes:
        number: of this call among all, from 1.
        write: of this write among the writes, from 1; 0 for reads.
        method: its name: `get`, `scan`, `multi`, ...
        request: what it was called with; for a scan, partition and both ends.
    """

    number: int
    write: int
    method: str
    request: object


Hook = Callable[[Call], Awaitable[None]]


class FaultyStore:
    """A store in front of another one, for tests. Until something is asked for, it passes everything on.

    The hooks are called with each call, before and after it is passed on. They may raise, wait, or count. An
    error of `after` is a call that was carried out and whose answer was lost.

    `cut_off` is the end: from then on, no call gets through. What is behind stays open, and can be given to
    the next engine, which finds what one finds after a crash.

    Attributes:
        before: called before each call.
        after: called after each call that did not fail; after each page of a scan no more.
        calls: how many there were.
        writes: how many of them were writes.
    """

    def __init__(self, inner: EngineStore) -> None:
        """Stand before `inner`, which is open already and stays open."""
        self._inner = inner
        self._cut = asyncio.Event()
        self._cut_before: int | None = None
        self._cut_after: int | None = None
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.calls: int = 0
        self.writes: int = 0

    @property
    def is_cut_off(self) -> bool:
        """Whether calls fail now."""
        return self._cut.is_set()

    async def until_cut_off(self) -> None:
        """Return when calls fail."""
        await self._cut.wait()

    def cut_off(self) -> None:
        """Let every call fail from now on."""
        self._cut.set()

    def cut_off_at(self, write: int, *, carried_out: bool) -> None:
        """Cut off at a write, counted from 1 over the store's life: before or after it is carried out."""
        if carried_out:
            self._cut_after = write
        else:
            self._cut_before = write

    def reconnect(self) -> None:
        """Let calls get through again."""
        self._cut.clear()
        self._cut_before = self._cut_after = None

    async def _begin(self, method: str, request: object, *, writes: bool) -> Call:
        self.calls += 1
        self.writes += writes
        call = Call(self.calls, self.writes if writes else 0, method, request)
        if writes and call.write == self._cut_before:
            self._cut.set()
        self._refuse(call)
        if self.before is not None:
            await self.before(call)
            self._refuse(call)
        return call

    async def _end(self, call: Call) -> None:
        if call.write and call.write == self._cut_after:
            self._cut.set()
        self._refuse(call)
        if self.after is not None:
            await self.after(call)

    def _refuse(self, call: Call) -> None:
        if self._cut.is_set():
            raise CutOffError(f"the store was cut off: call {call.number}, {call.method}")

    async def _pass_on(
        self, method: str, request: object, function: Callable[[], Awaitable[AnswerT]], *, writes: bool
    ) -> AnswerT:
        call = await self._begin(method, request, writes=writes)
        answer = await function()
        await self._end(call)
        return answer

    @property
    def features(self) -> frozenset[Feature]:
        """See `Store`."""
        return self._inner.features

    @property
    def limits(self) -> Limits:
        """See `Store`."""
        return self._inner.limits

    async def init(self, metadata: Metadata) -> None:
        """Do nothing: the store behind is the test's to open."""

    async def aclose(self) -> None:
        """Do nothing: the store behind is the test's to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def ping(self) -> None:
        """See `Store`."""
        await self._pass_on("ping", None, self._inner.ping, writes=False)

    async def get(self, request: GetRequest) -> GetResponse:
        """See `Store`."""
        return await self._pass_on("get", request, lambda: self._inner.get(request), writes=False)

    async def set(self, request: SetRequest) -> None:
        """See `Store`."""
        await self._pass_on("set", request, lambda: self._inner.set(request), writes=True)

    async def delete(self, request: DeleteRequest) -> None:
        """See `Store`."""
        await self._pass_on("delete", request, lambda: self._inner.delete(request), writes=True)

    async def multi(self, operations: Sequence[Operation]) -> str:
        """See `TransactionalStore`."""
        return await self._pass_on("multi", operations, lambda: self._inner.multi(operations), writes=True)

    async def bulk_get(
        self, requests: Sequence[GetRequest], *, parallelism: int = 0
    ) -> Sequence[BulkGetResponse]:
        """See `Store`."""

        async def read() -> Sequence[BulkGetResponse]:
            return await self._inner.bulk_get(requests, parallelism=parallelism)

        return await self._pass_on("bulk_get", requests, read, writes=False)

    async def bulk_set(self, requests: Sequence[SetRequest], *, parallelism: int = 0) -> None:
        """See `Store`."""

        async def write() -> None:
            await self._inner.bulk_set(requests, parallelism=parallelism)

        await self._pass_on("bulk_set", requests, write, writes=True)

    async def bulk_delete(self, requests: Sequence[DeleteRequest], *, parallelism: int = 0) -> None:
        """See `Store`."""

        async def write() -> None:
            await self._inner.bulk_delete(requests, parallelism=parallelism)

        await self._pass_on("bulk_delete", requests, write, writes=True)

    async def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        """See `OrderedStore`."""
        call = await self._begin("scan", (partition, start, end), writes=False)
        async for item in self._inner.scan(partition, start, end, limit=limit, reverse=reverse):
            self._refuse(call)
            yield item
        await self._end(call)

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        """See `WatchableStore`. What happens while the store is cut off is told by a RESYNC afterwards."""
        return self._told(require(self._inner, WatchableStore).watch(partition, prefix))

    async def _told(self, changes: AsyncIterator[Change]) -> AsyncIterator[Change]:
        missed = False
        async for change in changes:
            if self.is_cut_off:
                missed = True
            elif missed:
                missed = False
                yield Change(ChangeKind.RESYNC)
            else:
                yield change
