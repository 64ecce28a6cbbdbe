"""Group commit: concurrent transactions share one physical commit, each succeeding or failing alone.

Whatever waits when the last commit ends becomes the next batch. There is no linger timer: while one commit
runs the next batch forms by itself, and a transaction that comes alone is committed at once.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

from persistence.decision import Transaction
from persistence.errors import (
    CommitOutcomeUnknownError,
    PersistenceError,
    StoreBrokenError,
    StoreBusyError,
    StoreClosedError,
    StoreCorruptError,
    StoreUnavailableError,
)

__all__ = [
    "MAX_TRANSACTIONS",
    "Batcher",
    "BeginCommit",
    "Commit",
    "DataRejectedError",
    "Finish",
    "Result",
    "in_task",
]

Result: TypeAlias = str | PersistenceError
"""What became of one transaction of a batch: its etag ("" if it wrote no value), or why it was refused."""

Commit: TypeAlias = Callable[[Sequence[Transaction]], Awaitable[Sequence[Result]]]
"""Carries out a batch and answers with one result a transaction, in order."""

Finish: TypeAlias = Callable[[Sequence[Result] | BaseException], None]
"""Takes the results of a batch, or what the commit died of; called once, in the event loop's thread."""

BeginCommit: TypeAlias = Callable[[Sequence[Transaction], Finish], None]
"""Begins to carry out a batch, and returns at once.

A callback rather than a coroutine: a turn of the event loop more, or a task, costs a lone transaction
more than its statements do.
"""

MAX_TRANSACTIONS: Final = 1000
"""Transactions that share a commit, at most."""

_MAX_BYTES: Final = 64 * 1024 * 1024


def in_task(commit: Commit) -> BeginCommit:
    """Let a coroutine function carry out batches, a task for each."""

    async def run(batch: Sequence[Transaction], finish: Finish) -> None:
        try:
            results = await commit(batch)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            finish(error)
            if not isinstance(error, Exception):
                raise
        else:
            finish(results)

    tasks: set[asyncio.Task[None]] = set()

    def ended(finish: Finish, task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if task.cancelled():
            # Somebody cancels every task there is: the program is ending. The lane goes on without them.
            # Seen from outside, because a task that is cancelled before its first step does not see it.
            finish(CommitOutcomeUnknownError("the commit was cancelled"))

    def begin(batch: Sequence[Transaction], finish: Finish) -> None:
        task = asyncio.get_running_loop().create_task(run(batch, finish))
        tasks.add(task)
        task.add_done_callback(partial(ended, finish))

    return begin


class DataRejectedError(Exception):
    """Raised by a commit: the database refused a value of the batch, and nothing was written.

    The transactions are then committed one by one, and the one that cannot be written fails with `cause`.
    """

    def __init__(self, cause: PersistenceError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Batcher:
    """A lane of commits: one at a time, each taking everything that waits.

    What a commit raises decides what happens next. `DataRejectedError`: the batch is replayed one by one.
    Any other `PersistenceError`: every transaction of the batch fails with it, and the lane goes on. If it
    says that the database does not answer, or every result does, those that waited already when the commit
    began fail, too: they have waited as long as a commit may take, and each batch of them would again.
    `StoreCorruptError` and anything unforeseen: every transaction fails, and the lane refuses from then on,
    because nobody knows in what state the backend is.

    A caller that is cancelled stops waiting; its transaction is carried out all the same.

    It belongs to the event loop that runs when it is made, and has no task of its own that a shutdown
    could cancel before the last transactions are through.
    """

    def __init__(
        self,
        begin: BeginCommit,
        *,
        max_transactions: int = MAX_TRANSACTIONS,
        max_bytes: int = _MAX_BYTES,
        max_partitions: int = MAX_TRANSACTIONS,
    ) -> None:
        """Make a lane; a backend whose commit is a coroutine function passes `in_task(commit)`.

        `max_partitions` is for databases that have room for so many locks only.
        """
        self._begin = begin
        self._max_transactions = max_transactions
        self._max_bytes = max_bytes
        self._max_partitions = max_partitions
        self._loop = asyncio.get_running_loop()
        self._pending: list[Transaction] = []
        self._pending_bytes = 0
        self._futures: list[asyncio.Future[str]] = []
        self._replays: list[tuple[Transaction, asyncio.Future[str]]] = []
        self._left = 0  # so many of those that wait did so when the last commit began
        self._busy = False
        self._refusal: PersistenceError | None = None
        self._idle: asyncio.Future[None] | None = None

    def submit(self, transaction: Transaction) -> asyncio.Future[str]:
        """Let a transaction join the next batch; the future gives its etag when it is committed.

        Raises:
            StoreClosedError: the lane is closed.
            StoreBrokenError: a commit died earlier.
        """
        self.check()
        future = self._loop.create_future()
        self._pending.append(transaction)
        self._futures.append(future)
        self._pending_bytes += transaction.size
        if not self._busy:
            self._busy = True
            # Not at once: the other tasks that are ready to run may want to share the commit.
            self._loop.call_soon(self._start)
        return future

    def check(self) -> None:
        """Return if the lane accepts transactions.

        Raises:
            StoreClosedError: it is closed.
            StoreBrokenError: a commit died earlier.
        """
        if self._refusal is not None:
            raise _copy(self._refusal)

    def stop(self, cause: BaseException) -> None:
        """Refuse everything from now on, what waits included."""
        refusal = StoreBrokenError(f"the store stopped writing after an earlier failure: {cause}")
        refusal.__cause__ = cause
        self._refusal = refusal
        _fail(self._futures, refusal)
        _fail([future for _, future in self._replays], refusal)
        self._pending, self._futures, self._pending_bytes = [], [], 0
        self._replays, self._left = [], 0

    async def drain(self) -> None:
        """Refuse new transactions, and return when the accepted ones are through."""
        if self._refusal is None:
            self._refusal = StoreClosedError("the store is closed")
        if self._busy:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    def _start(self) -> None:
        batch, futures = self._take()
        self._left = len(self._pending)
        if not batch:
            self._rest()
            return
        try:
            self._begin(batch, partial(self._finish, batch, futures))
        except Exception as error:  # noqa: BLE001  a commit that cannot even begin is one that died
            self._finish(batch, futures, error)

    def _rest(self) -> None:
        self._busy = False
        if self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _take(self) -> tuple[list[Transaction], list[asyncio.Future[str]]]:
        if self._replays:
            transaction, future = self._replays.pop()
            return [transaction], [future]
        batch, futures = self._pending, self._futures
        most = min(self._max_transactions, self._max_partitions)
        if len(batch) <= most and self._pending_bytes <= self._max_bytes:
            self._pending, self._futures, self._pending_bytes = [], [], 0
            return batch, futures
        count = size = 0
        partitions: set[str] = set()
        while count < min(len(batch), self._max_transactions):
            partitions.add(batch[count].partition)
            size += batch[count].size
            if (size > self._max_bytes or len(partitions) > self._max_partitions) and count:
                size -= batch[count].size
                break
            count += 1
        self._pending, self._futures = batch[count:], futures[count:]
        self._pending_bytes -= size
        return batch[:count], futures[:count]

    def _finish(
        self,
        batch: list[Transaction],
        futures: list[asyncio.Future[str]],
        outcome: Sequence[Result] | BaseException,
    ) -> None:
        if isinstance(outcome, BaseException):
            self._fail_batch(batch, futures, outcome)
        elif len(outcome) != len(batch):
            error = RuntimeError(f"{len(outcome)} results for {len(batch)} transactions")
            self._fail_batch(batch, futures, error)
        else:
            for future, result in zip(futures, outcome, strict=True):
                if future.done():
                    continue
                if isinstance(result, str):
                    future.set_result(result)
                else:
                    _fail([future], result)
        unanswered = _unanswered(outcome)
        if unanswered is not None:
            self._give_up(unanswered)
        if self._pending or self._replays:
            # Not at once: the callers that are about to wake up may go on with another transaction.
            self._loop.call_soon(self._start)
        else:
            self._rest()

    def _give_up(self, unanswered: PersistenceError) -> None:
        """Fail those that waited already when the last commit began."""
        error = unanswered
        if not isinstance(error, StoreUnavailableError):
            error = StoreUnavailableError(f"nothing was sent, as a commit before had no answer: {unanswered}")
            error.__cause__ = unanswered
        left, self._left = self._left, 0
        self._pending_bytes -= sum(transaction.size for transaction in self._pending[:left])
        _fail([*self._futures[:left], *(future for _, future in self._replays)], error)
        del self._pending[:left], self._futures[:left]
        self._replays = []

    def _fail_batch(
        self, batch: list[Transaction], futures: list[asyncio.Future[str]], error: BaseException
    ) -> None:
        if isinstance(error, DataRejectedError):
            if len(batch) == 1:
                _fail(futures, error.cause)
            else:
                self._replays = list(zip(reversed(batch), reversed(futures), strict=True))
        elif isinstance(error, PersistenceError):
            _fail(futures, error)
            if isinstance(error, StoreCorruptError):
                self.stop(error)
        else:
            unknown = CommitOutcomeUnknownError(f"the commit died: {error!r}")
            unknown.__cause__ = error
            _fail(futures, unknown)
            self.stop(error)


def _unanswered(outcome: Sequence[Result] | BaseException) -> PersistenceError | None:
    """What a commit has met whose database does not answer; None if it does."""
    results = (outcome,) if isinstance(outcome, BaseException) else outcome
    first = next(iter(results), "")
    if not isinstance(first, StoreUnavailableError | CommitOutcomeUnknownError):
        return None
    for result in results:
        if not isinstance(result, StoreUnavailableError | CommitOutcomeUnknownError):
            return None
        if isinstance(result, StoreBusyError):
            return None  # it does answer
    return first


def _fail(futures: Sequence[asyncio.Future[str]], error: PersistenceError) -> None:
    """Give each waiting caller its own copy, as raising one error in many tasks tangles its traceback."""
    for future in futures:
        if not future.done():
            future.set_exception(_copy(error))
            # A caller cancelled between now and its wake-up never looks; that is no reason to log.
            future.exception()


def _copy(error: PersistenceError) -> PersistenceError:
    duplicate = copy.copy(error)
    duplicate.__cause__ = error.__cause__
    return duplicate
