"""Gathering: commits to different histories, which have nothing to fight for, share a transaction.

While one transaction is under way, commits of this process gather and become the next one. There is no linger
timer, and a commit that comes alone is carried out at once. A store shares its physical commits among
transactions as well, but a transaction and its row in the queue for the feed cost each commit more than its
events do.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Final, TypeAlias

from persistence.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    InvalidRequestError,
    PersistenceError,
)
from persistence.journal._heads import Heads
from persistence.journal._plans import Plan, together
from persistence.journal.ids import EventId, EventIdSource
from persistence.store import EngineStore

__all__ = ["Gatherer"]

_MAX_OPERATIONS: Final = 1000
_MAX_BYTES: Final = 1024 * 1024
# The callers of one transaction, who are about to come with their next commits, take a few turns of the event
# loop to do so. Without patience, those who are late would make two rounds of every one.
_MAX_TURNS: Final = 3


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
        # How many were carried out last, and for how many turns they were waited for.
        self._last = 0
        self._turns = 0

    def write(self, plan: Plan) -> Awaitable[str]:
        """Write a plan, together with others if any wait; the etag of its head, which is kept from then on.

        Raises:
            ETagMismatchError: the head is another one by now; nothing was written.
            TransactionTooLargeError: it is over the limits of the store; nothing was written.
            CommitOutcomeUnknownError: the store cannot tell whether it was written.
        """
        if self._busy or self._last > 1:
            loop = asyncio.get_running_loop()
            waiting = _Waiting(plan, loop.create_future())
            self._waiting.append(waiting)
            if not self._busy:
                self._busy = True
                loop.call_soon(self._start)
            return waiting.future
        self._busy = True
        return self._write_first(plan)

    async def _write_first(self, plan: Plan) -> str:
        try:
            return await self.write_alone(plan)
        finally:
            self._busy = bool(self._waiting)
            if self._busy:
                asyncio.get_running_loop().call_soon(self._start)

    async def write_alone(self, plan: Plan) -> str:
        """Write a plan in a transaction of its own; see `write`."""
        etag = await self._store.multi(plan.alone())
        self._heads.keep(plan.history, plan.made(etag))
        return etag

    def _start(self) -> None:
        if len(self._waiting) < self._last and self._turns < _MAX_TURNS:
            self._turns += 1
            self._busy = True
            asyncio.get_running_loop().call_soon(self._start)
            return
        self._turns = 0
        batches = self._take()
        self._busy = bool(batches)
        if not batches:
            return
        self._last = sum(len(members) for _, members in batches)
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
            # A history with ids from a client's far future would take the stamps of others there. A commit
            # that has waited for another one to its history builds on a head that is replaced by now: it is
            # bound to fail, and alone it fails alone.
            if plan.latest >= stamp or member.was_second:
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
                keep(plan.history, plan.made(etag))
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
