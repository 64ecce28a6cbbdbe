"""Writing: lock the partitions, read what the conditions are about, decide, write, commit; two round trips.

Across processes the locks make all this one step. Row locks on the rows themselves would not: what does
not exist cannot be locked, and two processes would both create it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from persistence.batcher import DataRejectedError, Result
from persistence.decision import Slot, Transaction, decide, new_etags
from persistence.errors import CommitOutcomeUnknownError, InvalidRequestError, StoreUnavailableError
from persistence.options import prefix_end
from persistence.paging import Window
from persistence.stores.mariadb.driver import Answer, ConnectionLostError, ServerError, Session
from persistence.stores.mariadb.failures import is_conflict, is_data_error, is_too_late, translate
from persistence.stores.mariadb.sql import Statements, packets, row

__all__ = ["Lane"]

_MOST_CONTENT_TYPE_BYTES: Final = 65_535
_FAMILY_ROWS: Final = 5000
_FRESH_TRIES: Final = 2
_CONFLICT_PAUSE_SECONDS: Final = 0.005
_RECONNECT_PAUSE_SECONDS: Final = 0.1


class _Work(Protocol):
    """What is to be done in one transaction.

    Attributes:
        partitions: sorted.
        reads: statements to run when the partitions are locked.
    """

    partitions: Sequence[str]
    reads: Sequence[str]

    def plan(self, answers: Sequence[Answer]) -> Sequence[str]:
        """The statements that write, given what was read; called once for each try."""
        ...


class _InDoubtError(Exception):
    """The commit was sent, and the server did not say that it is done."""

    def __init__(self, error: ConnectionLostError | ServerError) -> None:
        super().__init__(str(error))
        self.error = error


class Lane:
    """One connection that writes, one transaction at a time."""

    def __init__(
        self,
        open_session: Callable[[], Awaitable[Session]],
        statements: Statements,
        *,
        most_bytes: int,
        timeout_seconds: float,
        lock_seconds: float,
        where: str,
        reconnected: Callable[[], None],
    ) -> None:
        """Make a lane; `reconnected` is called when its connection had to be replaced."""
        self._open_session = open_session
        self._reconnected = reconnected
        self._statements = statements
        self._most_bytes = most_bytes
        self._timeout_seconds = timeout_seconds
        self._lock_seconds = lock_seconds
        self._where = where
        self._turn = asyncio.Lock()
        self._session: Session | None = None
        # Whose last transaction is noted in the database, so that we can ask for it.
        self._writer = secrets.randbits(62)
        self._number = 0
        self._noted = False
        self._committing = False

    async def commit(self, batch: Sequence[Transaction]) -> Sequence[Result]:
        """Decide and commit a batch in one transaction.

        Raises:
            PersistenceError: nothing was written.
            DataRejectedError: nothing was written, because of a value.
            CommitOutcomeUnknownError: the connection broke while the commit was under way.
        """
        work = _Batch(batch, self._statements)
        await self._transact(work)
        return work.results

    async def delete_family(self, partition: str, family: str) -> int:
        """Delete the keys that begin with `family` and have no further separator; the number deleted."""
        window = Window(partition, family, prefix_end(family), reverse=False)
        deleted = 0
        while True:
            work = _Family(window, family, self._statements)
            await self._transact(work)
            deleted += len(work.keys)
            if len(work.keys) < _FAMILY_ROWS:
                return deleted
            window = window.beyond(work.keys[-1])

    async def delete_expired(self, slots: Sequence[Slot]) -> None:
        """Delete rows that are still expired when it comes to it."""
        await self._transact(_Expired(slots, self._statements))

    async def aclose(self) -> None:
        """Disconnect."""
        async with self._turn:
            if self._session is not None:
                await self._session.close()
                self._session = None

    async def _transact(self, work: _Work) -> None:
        """Do some work in one transaction, as often as it takes, while there is time."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        deadline = start + self._timeout_seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError as error:
            raise translate(error, self._where) from error
        try:
            await self._transact_in_turn(work, deadline, start + self._lock_seconds)
        finally:
            self._turn.release()

    async def _transact_in_turn(self, work: _Work, deadline: float, conflict_deadline: float) -> None:
        now = asyncio.get_running_loop().time
        conflicts = lost = 0
        while True:
            self._committing = False
            try:
                async with asyncio.timeout_at(deadline):
                    await self._try(work)
            except _InDoubtError as doubt:
                error = doubt.error
                if await self._was_committed(work.partitions, deadline, error):
                    self._noted = True
                    return
            except TimeoutError as late:
                if self._committing:
                    raise self._unknown() from late
                raise translate(late, self._where) from late
            except ConnectionLostError as lost_error:
                error = lost_error
            except ServerError as refusal:
                if is_data_error(refusal):
                    raise DataRejectedError(translate(refusal, self._where)) from refusal
                if not is_conflict(refusal) or now() >= conflict_deadline:
                    raise translate(refusal, self._where) from refusal
                conflicts += 1
                await asyncio.sleep(_CONFLICT_PAUSE_SECONDS * conflicts * random.random())
                continue
            else:
                return
            # Nothing was written, and the connection is gone.
            lost += 1
            if lost > _FRESH_TRIES or now() >= deadline:
                raise translate(error, self._where) from error

    async def _try(self, work: _Work) -> None:
        """Do some work in one transaction; whatever is raised, the session is free of it, or dropped."""
        session = self._session
        if session is None or session.closed:
            session = await self._connect()
        last = ""
        try:
            answers = await self._lock_and_read(session, work)
            writes = work.plan(answers)
            if not writes:
                await session.run("ROLLBACK")
                return
            self._number += 1
            note = self._statements.note_outcome(self._writer, self._number)
            *before, last = packets([*writes, note, "COMMIT"], self._most_bytes)
            for packet in before:
                await session.run(packet)
            self._committing = True
            await session.run(last)
            self._noted = True
        except ServerError as error:
            # Literals hold no semicolons, so there is one before each statement but the first.
            if self._committing and error.completed == last.count(";"):
                session.abort()
                raise _InDoubtError(error) from error
            self._committing = False
            await self._undo(session, error)
            raise
        except ConnectionLostError as error:
            session.abort()
            if self._committing:
                raise _InDoubtError(error) from error
            raise
        except BaseException:
            session.abort()
            raise

    async def _connect(self) -> Session:
        lost = self._session
        session = self._session = await self._open_session()
        if lost is not None:
            self._reconnected()
        return session

    async def _lock_and_read(self, session: Session, work: _Work) -> Sequence[Answer]:
        locks = self._statements.lock(work.partitions)
        while True:
            answers: list[Answer] = []
            for packet in packets(["START TRANSACTION", *locks, *work.reads], self._most_bytes):
                answers += await session.run(packet)
            locked = [partition for answer in answers[1 : 1 + len(locks)] for (partition,) in answer.rows]
            if len(locked) == len(work.partitions):
                return answers[1 + len(locks) :]
            # Partitions that nobody has written to yet. Their rows are made outside of the transaction, so
            # that nobody waits for it to end to make the same ones.
            known = {partition.decode() for partition in locked}
            missing = [partition for partition in work.partitions if partition not in known]
            await session.run("ROLLBACK")
            for packet in packets(self._statements.add_locks(missing), self._most_bytes):
                await session.run(packet)

    async def _undo(self, session: Session, error: ServerError) -> None:
        if is_too_late(error):
            session.abort()
            return
        try:
            await session.run("ROLLBACK")
        except (ServerError, ConnectionLostError):
            session.abort()

    async def _was_committed(self, partitions: Sequence[str], deadline: float, cause: Exception) -> bool:
        """Find out whether the last transaction took place.

        Until its end, whichever, the server keeps the locks of its partitions, so we get them afterwards.

        Raises:
            CommitOutcomeUnknownError: there is no telling.
        """
        locks = self._statements.lock(partitions)
        outcome = self._statements.outcome(self._writer)
        answers: list[Answer] = []
        while True:
            answers.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    session = await self._connect()
                    for packet in packets(["START TRANSACTION", *locks, outcome], self._most_bytes):
                        answers += await session.run(packet)
                    await session.run("ROLLBACK")
                    break
            except TimeoutError:
                raise self._unknown() from cause
            except (StoreUnavailableError, ConnectionLostError, ServerError) as error:
                if self._session is not None:
                    self._session.abort()
                cause = error
            await asyncio.sleep(_RECONNECT_PAUSE_SECONDS * random.random())
        if sum(len(answer.rows) for answer in answers[1:-1]) < len(partitions):
            raise self._unknown() from cause  # somebody has deleted rows that we had locked
        noted = [number for (number,) in answers[-1].rows]
        if self._noted and not noted:
            raise self._unknown() from cause  # somebody has deleted what we had noted before
        return noted == [self._number]

    def _unknown(self) -> CommitOutcomeUnknownError:
        return CommitOutcomeUnknownError(
            f"the connection to {self._where} broke during a commit; what became of it cannot be found out"
        )


class _Batch:
    """A batch of transactions."""

    def __init__(self, batch: Sequence[Transaction], statements: Statements) -> None:
        self._batch = batch
        self._statements = statements
        self._etags = new_etags(len(batch))
        for transaction in batch:
            for slot, _, _, content_type in transaction.writes:
                if content_type and len(content_type.encode()) > _MOST_CONTENT_TYPE_BYTES:
                    message = (
                        f"the content type of key {slot[1]!r} has more than {_MOST_CONTENT_TYPE_BYTES} bytes"
                    )
                    raise DataRejectedError(InvalidRequestError(message))
        self.partitions: Sequence[str] = sorted({transaction.partition for transaction in batch})
        slots = {slot: None for transaction in batch for slot, _ in transaction.conditions}
        self.reads: Sequence[str] = statements.etags(slots)
        self.results: Sequence[Result] = ()

    def plan(self, answers: Sequence[Answer]) -> Sequence[str]:
        stored = {
            (partition.decode(), key.decode()): etag
            for answer in answers
            for partition, key, etag in answer.rows
        }
        decision = decide(self._batch, stored, self._etags)
        self.results = decision.results
        written: list[str] = []
        deleted: list[Slot] = []
        for slot, ((_, value, ttl_seconds, content_type), etag) in decision.writes.items():
            if value is None:
                deleted.append(slot)
            else:
                written.append(row(slot, value, etag, ttl_seconds, content_type))
        return [*self._statements.upsert(written), *self._statements.delete(deleted)]


class _Family:
    """Some of the keys with a prefix that have no further separator."""

    def __init__(self, window: Window, prefix: str, statements: Statements) -> None:
        self._statements = statements
        self.partitions: Sequence[str] = [window.partition]
        self.reads: Sequence[str] = [statements.family(window, prefix, _FAMILY_ROWS)]
        self.keys: Sequence[str] = ()

    def plan(self, answers: Sequence[Answer]) -> Sequence[str]:
        (answer,) = answers
        self.keys = [key.decode() for (key,) in answer.rows]
        return self._statements.delete((self.partitions[0], key) for key in self.keys)


class _Expired:
    """Rows that were expired when somebody looked."""

    def __init__(self, slots: Sequence[Slot], statements: Statements) -> None:
        self._writes = statements.delete_expired(slots)
        self.partitions: Sequence[str] = sorted({partition for partition, _ in slots})
        self.reads: Sequence[str] = ()

    def plan(self, answers: Sequence[Answer]) -> Sequence[str]:  # noqa: ARG002  it has read nothing
        return self._writes
