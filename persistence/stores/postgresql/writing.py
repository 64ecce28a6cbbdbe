"""A lane: one connection that carries out batches, two round trips each.

The first one locks the partitions of the batch and reads what its conditions ask for; then everything is
decided here; the second one writes and commits.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

import attrs
import psycopg

from persistence.batcher import DataRejectedError, Result
from persistence.decision import Slot, Transaction, Write, decide, new_etags
from persistence.errors import CommitOutcomeUnknownError, StoreUnavailableError
from persistence.options import prefix_end
from persistence.stores.postgresql.dialect import Dialect
from persistence.stores.postgresql.exchange import Statement
from persistence.stores.postgresql.failures import is_data_error, is_refusal, is_stale, is_transient
from persistence.stores.postgresql.locks import channel, partition_id
from persistence.stores.postgresql.notices import Notice, payloads
from persistence.stores.postgresql.outcome import Evidence, Outcome, ask_outcome, read_epoch
from persistence.stores.postgresql.packing import Bigints, Blobs, Texts
from persistence.stores.postgresql.session import Connector, Session
from persistence.stores.postgresql.sql import Statements

__all__ = ["Lane"]

T = TypeVar("T")

_ETAG_LENGTH: Final = 16
_PAUSE_SECONDS: Final = 0.01
_OUTCOME_PAUSE_SECONDS: Final = 0.05
# The share of the request's time that is left to find out what became of a commit.
_OUTCOME_SHARE: Final = 0.2


class _Found(NamedTuple):
    """What stood in the database when the partitions were locked."""

    transaction: str | None
    watched: Collection[str]
    stored: dict[Slot, str]
    deleted: int


@attrs.frozen
class _Plan(Generic[T]):
    """What to write, and what to answer when it is committed.

    Attributes:
        statements: what to run before the commit.
        answer: what comes of it.
        evidence: by what a commit that was not answered can be told from one that did not take place.
    """

    statements: Sequence[Statement]
    answer: T
    evidence: Callable[[], Evidence]


@attrs.frozen
class _Work(Generic[T]):
    """A transaction that is not decided yet.

    Attributes:
        partitions: what to lock.
        slots: whose etags to read.
        delete: a statement to run at once.
        decide: what is left to do.
    """

    partitions: Collection[str]
    slots: Sequence[Slot]
    delete: Statement | None
    decide: Callable[[_Found], _Plan[T]]


class Lane:
    """One connection that writes, replaced when it is lost."""

    def __init__(self, connector: Connector, dialect: Dialect, sql: Statements) -> None:
        self._connector = connector
        self._options = connector.options
        self._dialect = dialect
        self._sql = sql
        self._session: Session | None = None
        self._epoch: str | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[int]] = set()
        self._channel = channel(self._options.schema)
        self._now = asyncio.get_running_loop().time

    async def commit(self, batch: Sequence[Transaction]) -> Sequence[Result]:
        """Carry out a batch; see `Batcher` for what the errors mean."""
        etags = new_etags(len(batch))
        slots = list({slot: None for transaction in batch for slot, _ in transaction.conditions})

        def plan(found: _Found) -> _Plan[Sequence[Result]]:
            before = dict(found.stored)
            decision = decide(batch, found.stored, etags)
            statements = self._writes(decision.writes)
            statements += self._notices(found.watched, decision.writes)

            def evidence() -> Evidence:
                writes = decision.writes
                after = {slot: etag for slot, (write, etag) in writes.items() if write[1] is not None}
                replaced = {slot: etag for slot, etag in before.items() if slot in writes}
                return Evidence(found.transaction, after, replaced)

            return _Plan(statements, decision.results, evidence)

        partitions = {transaction.partition for transaction in batch}
        return await self._transact(_Work(partitions, slots, None, plan))

    async def delete_family(self, partition: str, prefix: str) -> int:
        """Delete the keys with this prefix that have no further separator; the number deleted.

        A caller that is cancelled does not disturb it.
        """
        # Deleted with the first round trip, so that the number is known whatever becomes of the second.
        delete = (self._sql["delete-family"], (partition, prefix, prefix_end(prefix), len(prefix) + 1))

        def plan(found: _Found) -> _Plan[int]:
            notify = [self._notify([Notice(self._id(partition), None)])] if found.watched else []
            return _Plan(notify, found.deleted, lambda: Evidence(found.transaction, {}, {}))

        task = asyncio.create_task(self._transact(_Work([partition], [], delete, plan)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except DataRejectedError as error:
            raise error.cause from error

    async def open(self) -> None:
        """Connect now, rather than with the first batch.

        Raises:
            StoreUnavailableError: the server cannot be reached, or refuses us.
        """
        await self._connect(self._now() + self._options.request_timeout.total_seconds())

    async def aclose(self) -> None:
        """Disconnect."""
        async with self._turn:
            await self._drop()

    async def _transact(self, work: _Work[T]) -> T:
        """Carry out a transaction, again if it surely did not take place and the time-outs allow."""
        async with self._turn:
            start = self._now()
            deadline = start + self._options.request_timeout.total_seconds()
            patience = start + self._options.lock_timeout.total_seconds()
            while True:
                reused = self._session is not None
                session = self._session or await self._connect(deadline)
                try:
                    return await self._attempt(session, work, deadline)
                except psycopg.Error as error:
                    if is_transient(error) and self._now() < patience:
                        await asyncio.sleep(_PAUSE_SECONDS * random.random())
                        continue
                    replaced = session.lost or is_stale(error)
                    if replaced and reused and not session.hung:
                        # It was cut off while nobody looked; a new one may well do.
                        continue
                    failure = session.failure(error)
                    if is_data_error(error):
                        raise DataRejectedError(failure) from error
                    raise failure from error

    async def _attempt(self, session: Session, work: _Work[T], deadline: float) -> T:
        """Carry out a transaction once.

        Raises:
            psycopg.Error: surely nothing was written.
            CommitOutcomeUnknownError: something may have been.
        """
        commit_deadline = deadline - _OUTCOME_SHARE * self._options.request_timeout.total_seconds()
        plan: _Plan[T] | None = None
        try:
            with session.until(commit_deadline):
                found = await self._lock_and_read(session, work)
                plan = work.decide(found)
                await session.transact(*plan.statements, (b"COMMIT", ()))
        except psycopg.Error as error:
            epoch = self._epoch
            await self._clear(session, error)
            if plan is None or is_refusal(error):
                raise
            if not await self._was_committed(plan.evidence(), epoch, deadline, error):
                raise
        except BaseException as error:
            await self._clear(session, error)
            raise
        return plan.answer

    async def _lock_and_read(self, session: Session, work: _Work[T]) -> _Found:
        """The first round trip."""
        sql = self._sql
        statements = list(session.opening)
        if self._dialect.locks:
            ids = sorted({self._id(partition) for partition in work.partitions})
            statements.append((sql["lock"], (Bigints(ids),)))
        partitions = Texts([partition for partition, _ in work.slots])
        keys = Texts([key for _, key in work.slots])
        statements.append((sql["lookup"], (Texts(work.partitions), partitions, keys)))
        if work.delete is not None:
            statements.append(work.delete)
        answers = await session.transact(*statements)
        deleted = 0 if work.delete is None else answers.pop().affected
        ((transaction, watched, numbers, etags),) = answers.pop().rows
        stored: dict[Slot, str] = {}
        if numbers is not None:
            for index, number in enumerate(numbers):
                start = index * _ETAG_LENGTH
                stored[work.slots[number - 1]] = etags[start : start + _ETAG_LENGTH]
        return _Found(transaction, watched or (), stored, deleted)

    def _writes(self, writes: Mapping[Slot, tuple[Write, str]]) -> list[Statement]:
        plain: list[tuple[Write, str]] = []
        full: list[tuple[Write, str]] = []
        deleted: list[Slot] = []
        for slot, entry in writes.items():
            _, value, ttl_seconds, content_type = entry[0]
            if value is None:
                deleted.append(slot)
            elif ttl_seconds is None and content_type is None:
                plain.append(entry)
            else:
                full.append(entry)
        statements: list[Statement] = []
        if plain:
            statements.append((self._sql["upsert"], _columns(plain)))
        if full:
            seconds = Bigints([write[2] for write, _ in full])
            types = Texts([write[3] for write, _ in full])
            statements.append((self._sql["upsert-full"], (*_columns(full), seconds, types)))
        if deleted:
            slots = (Texts([partition for partition, _ in deleted]), Texts([key for _, key in deleted]))
            statements.append((self._sql["delete"], slots))
        return statements

    def _notices(self, watched: Collection[str], writes: Collection[Slot]) -> list[Statement]:
        if not watched:
            return []
        keys: dict[str, list[str]] = {partition: [] for partition in watched}
        for partition, key in writes:
            if partition in keys:
                keys[partition].append(key)
        notices = [Notice(self._id(partition), changed) for partition, changed in keys.items() if changed]
        return [self._notify(notices)] if notices else []

    def _notify(self, notices: Sequence[Notice]) -> Statement:
        texts = [payload for notice in notices for payload in payloads(notice)]
        return self._sql["notify"], (self._channel, Texts(texts))

    def _id(self, partition: str) -> int:
        return partition_id(self._options.schema, partition)

    async def _was_committed(
        self, evidence: Evidence, epoch: str | None, deadline: float, cause: psycopg.Error
    ) -> bool:
        """Ask the server what became of a commit whose connection was lost; it may have to start first.

        Raises:
            CommitOutcomeUnknownError: it does not know, or does not answer in time.
        """
        outcome = Outcome.RUNNING
        while outcome is Outcome.RUNNING and self._now() < deadline:
            try:
                session = self._session or await self._connect(deadline)
                with session.until(deadline):
                    same = epoch is not None and epoch == self._epoch
                    outcome = await ask_outcome(session, self._sql, evidence, same_epoch=same)
            except StoreUnavailableError:
                pass
            except psycopg.Error:
                await self._drop()
            if outcome is Outcome.RUNNING:
                await asyncio.sleep(_OUTCOME_PAUSE_SECONDS)
        if outcome is Outcome.COMMITTED:
            return True
        if outcome is Outcome.ROLLED_BACK:
            return False
        raise CommitOutcomeUnknownError(
            f"the connection to {self._connector.where} was lost during a commit, and it cannot be found out"
            f" whether it took place: {cause}"
        ) from cause

    async def _connect(self, deadline: float) -> Session:
        session, _ = await self._connector.connect(deadline)
        await self._adopt(session, deadline)
        return session

    async def _adopt(self, session: Session, deadline: float) -> None:
        """Take a session for this lane's own; it is closed if that fails."""
        if self._dialect.outcomes:
            try:
                with session.until(deadline):
                    self._epoch = await read_epoch(session, self._sql, os.urandom(16).hex())
            except psycopg.Error as error:
                await session.aclose()
                raise session.failure(error) from error
            except BaseException:
                await session.aclose()
                raise
        self._session = session

    async def _clear(self, session: Session, error: BaseException) -> None:
        """Make the connection fit for the next transaction, or get rid of it."""
        usable = not isinstance(error, psycopg.Error) or (is_refusal(error) and not is_stale(error))
        if usable and isinstance(error, Exception):
            try:
                with session.until(self._now() + self._options.connect_timeout.total_seconds()):
                    await session.rows(b"ROLLBACK")
            except psycopg.Error:
                pass
            else:
                return
        await self._drop()

    async def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()


def _columns(rows: Sequence[tuple[Write, str]]) -> tuple[Texts, Texts, Texts, Blobs]:
    return (
        Texts([write[0][0] for write, _ in rows]),
        Texts([write[0][1] for write, _ in rows]),
        Texts([etag for _, etag in rows]),
        Blobs([write[1] for write, _ in rows if write[1] is not None]),
    )
