"""Group commit: concurrent transactions share one physical commit, each succeeding or failing alone.

Whatever waits when the last commit ends becomes the next batch. There is no linger timer: while one commit
runs the next batch forms by itself, and a transaction that comes alone is committed at once.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from persistence.decision import Transaction
from persistence.errors import (
    CommitOutcomeUnknownError,
    PersistenceError,
    StoreBrokenError,
    StoreClosedError,
    StoreCorruptError,
)

__all__ = ["Batcher", "Commit", "DataRejectedError", "Result"]

Result: TypeAlias = str | PersistenceError
"""What became of one transaction of a batch: its etag ("" if it wrote no value), or why it was refused."""

Commit: TypeAlias = Callable[[Sequence[Transaction]], Awaitable[Sequence[Result]]]
"""Carries out a batch and answers with one result a transaction, in order."""

_MAX_TRANSACTIONS: Final = 1000
_MAX_BYTES: Final = 64 * 1024 * 1024


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
    Any other `PersistenceError`: every transaction of the batch fails with it, and the lane goes on.
    `StoreCorruptError` and anything unforeseen: every transaction fails, and the lane refuses from then on,
    because nobody knows in what state the backend is.

    A caller that is cancelled stops waiting; its transaction is carried out all the same.

    It belongs to the event loop that runs when it is made, and has no task of its own that a shutdown
    could cancel before the last transactions are through.
    """

    def __init__(
        self, commit: Commit, *, max_transactions: int = _MAX_TRANSACTIONS, max_bytes: int = _MAX_BYTES
    ) -> None:
        self._commit = commit
        self._max_transactions = max_transactions
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._pending: list[Transaction] = []
        self._pending_bytes = 0
        self._futures: list[asyncio.Future[str]] = []
        self._replays: list[tuple[Transaction, asyncio.Future[str]]] = []
        self._busy = False
        self._refusal: PersistenceError | None = None
        self._idle: asyncio.Future[None] | None = None

    def submit(self, transaction: Transaction) -> asyncio.Future[str]:
        """Let a transaction join the next batch; the future gives its etag when it is committed.

        Raises:
            StoreClosedError: the lane is closed.
            StoreBrokenError: a commit died earlier.
        """
        if self._refusal is not None:
            raise _copy(self._refusal)
        future = self._loop.create_future()
        self._pending.append(transaction)
        self._futures.append(future)
        self._pending_bytes += transaction.size
        if not self._busy:
            self._busy = True
            # Not at once: the other tasks that are ready to run may want to share the commit.
            self._loop.call_soon(self._start)
        return future

    def stop(self, cause: BaseException) -> None:
        """Refuse everything from now on, what waits included."""
        refusal = StoreBrokenError(f"the store stopped writing after an earlier failure: {cause}")
        refusal.__cause__ = cause
        self._refusal = refusal
        _fail(self._futures, refusal)
        _fail([future for _, future in self._replays], refusal)
        self._pending, self._futures, self._pending_bytes = [], [], 0
        self._replays = []

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
        if not batch:
            self._rest()
            return
        try:
            outcome = asyncio.ensure_future(self._commit(batch))
        except Exception as error:  # noqa: BLE001  a commit that cannot even start is one that died
            self._settle(batch, futures, error)
            self._loop.call_soon(self._start)
            return

        def finish(done: asyncio.Future[Sequence[Result]]) -> None:
            self._finish(batch, futures, done)

        outcome.add_done_callback(finish)

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
        if len(batch) <= self._max_transactions and self._pending_bytes <= self._max_bytes:
            self._pending, self._futures, self._pending_bytes = [], [], 0
            return batch, futures
        count = size = 0
        while count < min(len(batch), self._max_transactions):
            size += batch[count].size
            if size > self._max_bytes and count:
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
        outcome: asyncio.Future[Sequence[Result]],
    ) -> None:
        if outcome.cancelled():
            self._settle(batch, futures, CommitOutcomeUnknownError("the commit was cancelled"))
        elif (error := outcome.exception()) is not None:
            self._settle(batch, futures, error)
        elif len(results := outcome.result()) != len(batch):
            error = RuntimeError(f"{len(results)} results for {len(batch)} transactions")
            self._settle(batch, futures, error)
        else:
            for future, result in zip(futures, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, str):
                    future.set_result(result)
                else:
                    _fail([future], result)
        self._start()

    def _settle(
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
