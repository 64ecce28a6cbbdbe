"""What stores have in common, so that a backend writes only what is its own.

`BaseStore` has the parts every store has: bulk forms, retry policies, opening and closing. `BatchedStore`
adds transactions by group commit; a backend says how to carry out a batch.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import ClassVar, Final, Self, TypeVar

from persistence.batcher import MAX_TRANSACTIONS, Batcher, BeginCommit
from persistence.decision import prepare
from persistence.errors import BulkError, BulkItemError, StoreClosedError
from persistence.retry import delete_with_retries, set_with_retries
from persistence.store import (
    BulkGetResponse,
    DeleteRequest,
    Feature,
    GetRequest,
    GetResponse,
    Limits,
    Metadata,
    Operation,
    SetRequest,
)

__all__ = ["BaseStore", "BatchedStore"]

RequestT = TypeVar("RequestT", GetRequest, SetRequest, DeleteRequest)
AnswerT = TypeVar("AnswerT")
_NO_PROPERTIES: Final = Metadata()


class BaseStore(abc.ABC):
    """The common part of a store: a backend implements what is abstract and overrides what it does better.

    The life of a store is one way: made, opened by `init` (or by `async with`), closed for good by `aclose`.
    """

    READS_WITHOUT_WAITING: ClassVar[bool] = False
    """Whether a read has its answer at once: several of them are then best done one after the other."""

    @property
    @abc.abstractmethod
    def features(self) -> frozenset[Feature]:
        """What this store can do."""

    @property
    @abc.abstractmethod
    def limits(self) -> Limits:
        """What one request may hold."""

    @abc.abstractmethod
    async def init(self, metadata: Metadata) -> None:
        """Open the store; a second call does nothing."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted, and release everything; a second call does nothing."""

    @abc.abstractmethod
    async def ping(self) -> None:
        """Return if the database answers."""

    @abc.abstractmethod
    async def get(self, request: GetRequest) -> GetResponse:
        """Read one key; absent is an empty response."""

    @abc.abstractmethod
    async def multi(self, operations: Sequence[Operation]) -> str:
        """Carry out all operations or none; the etag of every row that was written."""

    async def set(self, request: SetRequest) -> None:
        """Write one key, trying again as the request's retry policy says."""
        if request.options.retry_policy is None:
            await self.multi((request,))
        else:
            await set_with_retries(self._set_once, request)

    async def delete(self, request: DeleteRequest) -> None:
        """Delete one key, trying again as the request's retry policy says."""
        if request.options.retry_policy is None:
            await self.multi((request,))
        else:
            await delete_with_retries(self._delete_once, request)

    async def _set_once(self, request: SetRequest) -> None:
        await self.multi((request,))

    async def _delete_once(self, request: DeleteRequest) -> None:
        await self.multi((request,))

    async def bulk_get(
        self, requests: Sequence[GetRequest], *, parallelism: int = 0
    ) -> Sequence[BulkGetResponse]:
        """Read several keys, one entry a request, in order; at most `parallelism` at once (0: no bound)."""
        answers = await _bounded(self.get, requests, 1 if self.READS_WITHOUT_WAITING else parallelism)
        return [_bulk_entry(request, answer) for request, answer in zip(requests, answers, strict=True)]

    async def bulk_set(self, requests: Sequence[SetRequest], *, parallelism: int = 0) -> None:
        """Write several keys, each for itself.

        Raises:
            BulkError: lists the keys that failed; the others were written.
        """
        _raise_failures(requests, await _bounded(self.set, requests, parallelism))

    async def bulk_delete(self, requests: Sequence[DeleteRequest], *, parallelism: int = 0) -> None:
        """Delete several keys, each for itself.

        Raises:
            BulkError: lists the keys that failed; the others were deleted.
        """
        _raise_failures(requests, await _bounded(self.delete, requests, parallelism))

    async def __aenter__(self) -> Self:
        try:
            await self.init(_NO_PROPERTIES)
        except asyncio.CancelledError:
            # The opening may go on without its caller, and nobody else would close what it opens.
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class BatchedStore(BaseStore):
    """A store whose transactions share commits.

    `init` of a backend ends with `start_lanes`, its `aclose` begins with `drain_lanes`.
    """

    def __init__(self) -> None:
        self._lanes: Sequence[Batcher] = ()

    async def multi(self, operations: Sequence[Operation]) -> str:
        """Carry out all operations or none; the etag of every row that was written ("" if none was).

        All conditions see the state before; then the writes happen in order.

        Raises:
            ETagMismatchError: a condition does not hold; names the key.
            ETagInvalidError: an etag that this store can never have given out.
            TransactionTooLargeError: over `limits`.
            CommitOutcomeUnknownError: the commit broke off, and may have taken place.
        """
        lanes = self._lanes
        if not lanes:
            raise StoreClosedError("the store is not open; use `async with`, or call `init`")
        if not operations:
            return ""
        transaction = prepare(operations, self.limits)
        lane = lanes[0] if len(lanes) == 1 else lanes[self.lane_of(transaction.partition)]
        return await lane.submit(transaction)

    def start_lanes(self, *begins: BeginCommit, max_partitions: int = MAX_TRANSACTIONS) -> None:
        """Begin to accept transactions, each lane carrying out its batches by one of `begins`.

        All transactions of a partition go through the same lane; a batch is about `max_partitions` at most.
        What a commit may raise: see `Batcher`.
        """
        self._lanes = [Batcher(begin, max_partitions=max_partitions) for begin in begins]

    def lane_of(self, partition: str) -> int:
        """The number of the lane that all transactions of a partition go through."""
        return hash(partition) % len(self._lanes)

    def check_lanes(self) -> None:
        """Return if transactions are accepted.

        Raises:
            StoreBrokenError: a commit died earlier.
        """
        for lane in self._lanes:
            lane.check()

    async def drain_lanes(self) -> None:
        """Refuse new transactions, and return when the accepted ones are through."""
        await asyncio.gather(*(lane.drain() for lane in self._lanes))


async def _bounded(
    call: Callable[[RequestT], Awaitable[AnswerT]], requests: Sequence[RequestT], parallelism: int
) -> list[AnswerT | Exception]:
    """Call for each request, at most `parallelism` at once; an entry a request, in order."""
    answers: list[AnswerT | Exception | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))

    async def work(waiting: Iterator[tuple[int, RequestT]]) -> None:
        for index, request in waiting:
            try:
                answers[index] = await call(request)
            except Exception as error:  # noqa: BLE001  each item fails for itself
                answers[index] = error

    workers = len(requests) if parallelism <= 0 else min(parallelism, len(requests))
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work(waiting))
    return answers  # type: ignore[return-value]  # every index was filled


def _bulk_entry(request: GetRequest, answer: GetResponse | Exception) -> BulkGetResponse:
    if isinstance(answer, Exception):
        return BulkGetResponse(key=request.key, partition=request.partition, error=answer)
    return BulkGetResponse(
        key=request.key,
        partition=request.partition,
        data=answer.data,
        etag=answer.etag,
        metadata=answer.metadata,
        content_type=answer.content_type,
    )


def _raise_failures(requests: Sequence[RequestT], answers: Sequence[Exception | None]) -> None:
    failures = [
        BulkItemError(request.partition, request.key, answer)
        for request, answer in zip(requests, answers, strict=True)
        if answer is not None
    ]
    if failures:
        raise BulkError(failures)
