"""Gathering: commits to different histories, which have nothing to fight for, share a transaction.

While one transaction is under way, commits of this process gather and become the next one. There is no linger
timer, and a commit that comes alone is carried out at once. A store shares its physical commits among
transactions as well, but a transaction and its row in the queue for the feed cost each commit more than its
events do.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from functools import partial
from typing import Final, TypeAlias

from persistence.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    InvalidRequestError,
    PersistenceError,
)
from persistence.journal._heads import Head, Heads
from persistence.journal._plans import Plan, together
from persistence.journal.ids import EventId, EventIdSource
from persistence.store import EngineStore

__all__ = ["Gatherer"]

_MAX_OPERATIONS: Final = 1000
_MAX_BYTES: Final = 1024 * 1024


class _Waiting:
    __slots__ = ("future", "plan", "was_second")

    def __init__(self, plan: Plan, future: asyncio.Future[str]) -> None:
        self.plan = plan
        self.future = future
        self.was_second: bool = False


_Batch: TypeAlias = tuple[EventId, list[_Waiting]]


class Gatherer:
    """Writes plans, those that meet in one transaction, each succeeding or failing as it would alone.

    If the transaction of several is refused, nothing of it was written, and each is written alone. If its
    outcome is unknown, each of the commits is told so, and may be written alone: either its head has been
    replaced by then, or the transaction cannot come through any more.

    A caller that is cancelled stops waiting; its commit may be carried out all the same.
    """

    def __init__(self, store: EngineStore, partition: str, *, heads: Heads, ids: EventIdSource) -> None:
        self._store = store
        self._partition = partition
        self._heads = heads
        self._ids = ids
        self._most_operations = min(_MAX_OPERATIONS, store.limits.operations)
        # The size of a plan is an estimate.
        self._most_bytes = min(_MAX_BYTES, store.limits.transaction_bytes // 2)
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = False
        self._crowded = False

    async def write(self, plan: Plan) -> str:
        """Write a plan, together with others if any wait; the etag of its head, which is kept from then on.

        Raises:
            ETagMismatchError: the head is another one by now; nothing was written.
            TransactionTooLargeError: it is over the limits of the store; nothing was written.
            CommitOutcomeUnknownError: the store cannot tell whether it was written.
        """
        if self._busy or self._crowded:
            loop = asyncio.get_running_loop()
            waiting = _Waiting(plan, loop.create_future())
            self._waiting.append(waiting)
            if not self._busy:
                self._busy = True
                # Not at once: the others of the last transaction are about to come, too.
                loop.call_soon(self._start)
            return await waiting.future
        self._busy = True
        try:
            return await self.write_alone(plan)
        finally:
            self._busy = bool(self._waiting)
            if self._busy:
                asyncio.get_running_loop().call_soon(self._start)

    async def write_alone(self, plan: Plan) -> str:
        """Write a plan in a transaction of its own; see `write`."""
        etag = await self._store.multi(plan.alone())
        self._heads.keep(plan.history, Head(plan.row, etag))
        return etag

    def _start(self) -> None:
        batches = self._take()
        self._busy = bool(batches)
        self._crowded = any(len(members) > 1 for _, members in batches)
        loop = asyncio.get_running_loop()
        for stamp, members in batches:
            task = loop.create_task(self._carry_out(stamp, members))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, members))

    def _take(self) -> list[_Batch]:
        """Everything that waits, one commit of each history."""
        waiting, self._waiting = self._waiting, []
        batches: list[_Batch] = []
        taken: set[int] = set()
        stamp = self._ids.new()
        members: list[_Waiting] = []
        operations, size = 1, 0
        for member in waiting:
            if member.future.done():
                continue
            plan = member.plan
            number = plan.history.int
            if number in taken:
                member.was_second = True
                self._waiting.append(member)
                continue
            taken.add(number)
            if self._has_to_go_alone(member, stamp):
                batches.append((stamp, [member]))
                continue
            operations += len(plan.rows) + 1
            size += plan.size
            if members and (operations > self._most_operations or size > self._most_bytes):
                batches.append((stamp, members))
                stamp, members = self._ids.new(), []
                operations, size = len(plan.rows) + 2, plan.size
            members.append(member)
        if members:
            batches.append((stamp, members))
        return batches

    def _has_to_go_alone(self, member: _Waiting, stamp: EventId) -> bool:
        plan = member.plan
        # A history with ids from a client's far future would take the stamps of the others there.
        if plan.latest >= stamp:
            return True
        if not member.was_second:
            return False
        # Another commit to this history was written meanwhile: it is bound to fail, and alone it fails alone.
        kept = self._heads.kept(plan.history)
        return kept is not None and kept.etag != plan.head.etag

    async def _carry_out(self, stamp: EventId, members: Sequence[_Waiting]) -> None:
        if len(members) == 1:
            await self._carry_out_alone(members[0])
            return
        operations = together(self._partition, [member.plan for member in members], stamp)
        try:
            etag = await self._store.multi(operations)
        except (ConflictError, InvalidRequestError):
            async with asyncio.TaskGroup() as group:
                for member in members:
                    group.create_task(self._carry_out_alone(member))
        except Exception as error:  # noqa: BLE001  it is the callers' affair
            _fail(members, error)
        else:
            keep = self._heads.keep
            for member in members:
                plan, future = member.plan, member.future
                keep(plan.history, Head(plan.row, etag))
                if not future.done():
                    future.set_result(etag)

    async def _carry_out_alone(self, member: _Waiting) -> None:
        try:
            etag = await self.write_alone(member.plan)
        except Exception as error:  # noqa: BLE001  it is the caller's affair
            _fail([member], error)
        else:
            if not member.future.done():
                member.future.set_result(etag)

    def _ended(self, members: Sequence[_Waiting], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None:
            # Somebody cancels every task there is: the program is ending.
            _fail(members, CommitOutcomeUnknownError("the commit was cancelled"))
        if not self._tasks:
            # The callers have woken up before, and those that go on with another commit wait again.
            self._start()


def _fail(members: Sequence[_Waiting], error: Exception) -> None:
    for member in members:
        future = member.future
        if future.done():
            continue
        own = error
        if isinstance(error, PersistenceError) and len(members) > 1:
            # To each its own, as raising one error in many tasks tangles its traceback.
            own = copy.copy(error)
            own.__cause__ = error.__cause__
        future.set_exception(own)
        # A caller cancelled between now and its wake-up never looks; that is no reason to log.
        future.exception()
