"""The store of one simulated process: a line to the database that all of them share, on which things go wrong."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast

from hsm.engine._rows import QueuedTask
from persistence.errors import CommitOutcomeUnknownError, PersistenceError, StoreUnavailableError
from persistence.features import require
from persistence.paging import Page, Window, read_pages, scan_window
from persistence.store import (
    BulkGetResponse,
    Change,
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
)
from persistence.stores.memory import MemoryStore
from persistence.watching import Watch
from tests.simulation.faults import Fault, Faults
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.runs import Archive

__all__ = ["Database", "Owner", "SimulatedStore"]

AnswerT = TypeVar("AnswerT")

_NANOS: Final = 10**9
_MILLISECOND: Final = 10**6
_NO_PROCESS: Final = contextvars.Context()


class Owner(Protocol):
    """Who can do something to a process."""

    def kill(self, process: Process) -> None: ...

    def stop(self, process: Process) -> None: ...

    def slowed(self, process: Process, nanos: int) -> None: ...


class Database:
    """What all processes share: the data, and who watches them.

    Attributes:
        data: the store behind.
        watched: whether changes are told.
        page_rows: the most rows that one call reads.
        wrote: called after each commit.
        archive: of the executions that were deleted.
        displaced: ids of tasks whose rows have been elsewhere than where the machine has put them.
    """

    def __init__(self, loop: VirtualLoop, clock: Callable[[], int], *, watched: bool, page_rows: int) -> None:
        self.loop = loop
        self.clock = clock
        self.data = MemoryStore(clock=clock)
        self.watched = watched
        self.page_rows = page_rows
        self.wrote: Callable[[], None] = lambda: None
        self.archive = Archive(self.data)
        self.displaced: set[str] = set()
        self._watches: dict[Watch, str] = {}

    def watch(self, partition: str, prefix: str) -> Watch:
        watch = Watch(prefix)
        self._watches[watch] = partition
        return watch

    def changed(self, operations: Sequence[Operation]) -> None:
        """Tell those who watch."""
        for operation in operations:
            if isinstance(operation, SetRequest) and operation.key.startswith("t/"):
                task = QueuedTask.parse("", operation.key, "", operation.value)
                if task.displaced:
                    self.displaced.add(task.id)
            if isinstance(operation, SetRequest | DeleteRequest):
                for watch, partition in self._watches.items():
                    if partition == operation.partition:
                        watch.notify(operation.key)
        self.wrote()


class SimulatedStore:
    """An `EngineStore` as one process has it. What it has sent is carried out, even if the process is no more."""

    def __init__(
        self, database: Database, process: Process, faults: Faults, owner: Owner, trace: Callable[..., None]
    ) -> None:
        self._database = database
        self._inner: EngineStore = require(database.data, EngineStore)
        self._loop = database.loop
        self._process = process
        self._faults = faults
        self._chance = faults.chance
        self._owner = owner
        self._trace = trace
        self._busy_until = 0
        self.cut = False

    @property
    def features(self) -> frozenset[Feature]:
        features = self._inner.features
        return features if self._database.watched else features - {Feature.WATCH}

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def init(self, metadata: Metadata) -> None: ...

    async def aclose(self) -> None: ...

    async def ping(self) -> None: ...

    async def get(self, request: GetRequest) -> GetResponse:
        return await self._read(f"get {request.key}", lambda: self._inner.get(request))

    async def bulk_get(
        self, requests: Sequence[GetRequest], *, parallelism: int = 0
    ) -> Sequence[BulkGetResponse]:
        async def get_all() -> Sequence[BulkGetResponse]:
            answers = [(request.key, await self._inner.get(request)) for request in requests]
            return [BulkGetResponse(key, data=found.data, etag=found.etag) for key, found in answers]

        return await self._read("bulk_get", get_all)

    async def multi(self, operations: Sequence[Operation]) -> str:
        return await self._write(operations)

    async def set(self, request: SetRequest) -> None:
        await self._write([request])

    async def delete(self, request: DeleteRequest) -> None:
        await self._write([request])

    async def bulk_set(self, requests: Sequence[SetRequest], *, parallelism: int = 0) -> None:
        for request in requests:
            await self.set(request)

    async def bulk_delete(self, requests: Sequence[DeleteRequest], *, parallelism: int = 0) -> None:
        for request in requests:
            await self.delete(request)

    def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        window = scan_window(partition, start, end, limit=limit, reverse=reverse)
        rows = self._database.page_rows
        return read_pages(self._page, window, limit, first=rows, following=rows)

    async def _page(self, window: Window, rows: int) -> Page:
        return await self._read(
            f"scan {window.partition} {window.start}",
            functools.partial(self._database.data._read_page, window, rows),
        )

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        return self._database.watch(partition, prefix)

    # Reads

    async def _read(self, name: str, perform: Callable[[], Coroutine[Any, Any, AnswerT]]) -> AnswerT:
        """Carry a read out at once or at the end of its time, and answer then."""
        if self.cut:
            raise StoreUnavailableError("the line is cut")
        fault = self._faults.next(writes=False)
        early = self._chance.random() < 0.5
        delay = self._delay()
        if fault is not None:
            self._trace(self._process, "fault", name, fault.name)
            if fault is Fault.REFUSED:
                await asyncio.sleep(delay / _NANOS)
                raise StoreUnavailableError("the store does not answer")
            if fault is Fault.KILL:
                self._owner.kill(self._process)
            elif fault is Fault.STOP:
                self._owner.stop(self._process)
            else:
                early = fault is Fault.SLOW_ANSWER
                delay = self._long_delay()
        if early:
            answer = _answer(perform)
            await asyncio.sleep(delay / _NANOS)
            return answer
        await asyncio.sleep(delay / _NANOS)
        if self.cut:
            raise StoreUnavailableError("the line is cut")
        return _answer(perform)

    # Writes

    async def _write(self, operations: Sequence[Operation]) -> str:
        if self.cut:
            raise StoreUnavailableError("the line is cut")
        fault = self._faults.next(writes=True)
        if fault is not None:
            self._trace(self._process, "fault", "multi", fault.name)
        answer: asyncio.Future[str] = self._loop.create_future()
        early = self._chance.random() < 0.5
        delay = self._delay()
        arrival = 0 if early else delay
        if fault is Fault.REFUSED or fault is Fault.LOST:
            await asyncio.sleep(delay / _NANOS)
            if fault is Fault.LOST:
                raise CommitOutcomeUnknownError("the line broke")
            raise StoreUnavailableError("the store does not answer")
        if fault is Fault.SLOW:
            arrival = delay = self._long_delay()
        elif fault is Fault.SLOW_ANSWER:
            arrival, delay = 0, self._long_delay()
        elif fault is Fault.LATE:
            arrival, delay = self._long_delay(), 0
        elif fault is Fault.CONFLICT:
            self._be_faster(operations)
        elif fault is Fault.KILL:
            self._owner.kill(self._process)
            # Never to be woken up.
            await answer
        now = self._loop.nanos
        # One after the other, as on one line.
        arrival_at = max(now + arrival, self._busy_until)
        if arrival_at > now:
            self._busy_until = arrival_at + 1
            self._loop.call_at(
                arrival_at / _NANOS,
                self._carry_out,
                arrival_at,
                operations,
                answer,
                fault,
                context=_NO_PROCESS.copy(),
            )
        else:
            self._carry_out(now, operations, answer, fault)
        if fault is Fault.DONE or fault is Fault.LATE:
            answer.add_done_callback(_seen)
            await asyncio.sleep(delay / _NANOS)
            raise CommitOutcomeUnknownError("the line broke")
        if early:
            if not answer.done():
                await answer
            await asyncio.sleep(delay / _NANOS)
        return await answer

    def _carry_out(
        self, at: int, operations: Sequence[Operation], answer: asyncio.Future[str], fault: Fault | None
    ) -> None:
        self._loop.reach(at)
        doomed = self._database.archive.doomed(operations)
        try:
            etag = _answer(lambda: self._inner.multi(operations))
        except PersistenceError as error:
            self._trace(self._process, "refused", operations, type(error).__name__)
            if not answer.done():
                answer.set_exception(error)
                answer.add_done_callback(_seen)
        else:
            self._trace(self._process, "wrote", operations, "")
            self._database.archive.take(doomed, self._database.clock())
            self._database.changed(operations)
            if not answer.done():
                answer.set_result(etag)
        if fault is Fault.KILL_AFTER:
            self._owner.kill(self._process)
        elif fault is Fault.STOP:
            self._owner.stop(self._process)

    def _be_faster(self, operations: Sequence[Operation]) -> None:
        """Write the rows of executions anew that this one has looked at, as they are: their etags are others."""
        for operation in operations:
            if operation.key.startswith("e/") and getattr(operation, "etag", None):
                request = GetRequest(partition=operation.partition, key=operation.key)
                found = _answer(functools.partial(self._inner.get, request))
                if found.data is not None:
                    again = SetRequest(partition=operation.partition, key=operation.key, value=found.data)
                    _answer(functools.partial(self._inner.multi, [again]))

    def _delay(self) -> int:
        """Mostly a turn of the loop, or some milliseconds."""
        chance = self._chance.random()
        return 0 if chance < 0.6 else round(chance * chance * 20 * _MILLISECOND)

    def _long_delay(self) -> int:
        delay = round(self._chance.choice([0.3, 2, 15]) * self._chance.uniform(0.5, 1) * _NANOS)
        self._owner.slowed(self._process, delay)
        return delay


def _seen(answer: asyncio.Future[str]) -> None:
    """Nobody may ever ask for it."""
    if not answer.cancelled():
        answer.exception()


def _answer(perform: Callable[[], Coroutine[Any, Any, AnswerT]]) -> AnswerT:
    """What a coroutine returns that waits for nothing: the store in memory answers at once."""
    coroutine = perform()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("AnswerT", stop.value)  # a coroutine's result is what it stops with
    raise AssertionError("the store in memory waits for something")
