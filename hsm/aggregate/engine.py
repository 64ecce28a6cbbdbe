"""The engine of aggregates: reads their histories, tells them commands, and commits what these come to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, cast
from uuid import UUID

import attrs

from hsm.aggregate._cache import Cache, Locks
from hsm.aggregate._reading import Reader
from hsm.aggregate.behavior import Behavior, CommandT, Event, FactT, HasHistoryType, Repeatable, StateT
from hsm.aggregate.errors import InvalidDeleteBehaviorError
from hsm.aggregate.options import AggregateOptions
from hsm.engine.clock import nanos_of, sleep_for
from persistence.errors import TransactionTooLargeError
from persistence.journal import (
    EPOCH,
    RETRY_NO_VC,
    EventCommitUnknownError,
    EventId,
    Expectation,
    Journal,
    NewEvent,
    RetryNoVCError,
    UnknownHistoryError,
    VersionConflictError,
)

__all__ = ["Counts", "Engine"]

_RECOMMITS: Final = 6


@attrs.define
class Counts:
    """What an engine has done since it was made.

    Attributes:
        commits: that have taken place.
        commands: that were committed with them, or were found to be carried out already.
        conflicts: commits that somebody else was ahead of.
        retries: tries after such a conflict.
    """

    commits: int = 0
    commands: int = 0
    conflicts: int = 0
    retries: int = 0


@attrs.define(eq=False)
class _Telling(Generic[StateT, CommandT]):
    """A command that waits for its turn."""

    command: CommandT
    answer: asyncio.Future[StateT]


class Engine(Generic[StateT, CommandT, FactT]):
    """Aggregates of one kind in a journal, each with a history of its own.

    A command is told to the present state; the facts that it comes to are committed under the condition that
    the history has not moved on. So it does not matter how many processes tell commands. Within a process,
    commands on one aggregate wait for each other instead of getting into each other's way, and those that
    were told with `RETRY_NO_VC` meanwhile are committed together.

    States are kept in memory, and compared with the head of the history each time; nobody sees what was
    replaced or deleted elsewhere.

    Semantics: nog `events.Engine` (2019), without its stale cache.
    """

    def __init__(
        self,
        journal: Journal,
        behavior: Behavior[StateT, CommandT, FactT],
        options: AggregateOptions | None = None,
    ) -> None:
        """Work on an open journal, which stays the caller's."""
        self._journal = journal
        self._behavior = behavior
        self._options = options or AggregateOptions()
        self._cache: Cache[StateT] = Cache(self._options.cache_size)
        self._reader: Reader[StateT, FactT] = Reader(journal, behavior, self._options.unknown_events)
        self._locks = Locks()
        self._waiting: dict[UUID, deque[_Telling[StateT, CommandT]]] = {}
        # Which states and commands it is about, no check at run time can tell.
        self._repeatable = (
            cast("Repeatable[StateT, CommandT]", behavior) if isinstance(behavior, Repeatable) else None
        )
        self._type = behavior.history_type if isinstance(behavior, HasHistoryType) else ""
        self.counts: Final = Counts()

    async def find_id(self, id_: UUID) -> StateT:
        """The present state; one without history has the version `EPOCH`.

        Raises:
            JournalError: the history cannot be read.
            UnknownEventTypeError, InvalidEventTypeError, SerializationError: nor can one of its events.
        """
        cached = self._cache.get(id_)
        if cached is None:
            return self._keep(await self._reader.present(id_))
        return await self.find_from_state(cached)

    async def find_from_state(self, state: StateT) -> StateT:
        """The present state of the same aggregate, reading only what has come since `state`."""
        found = await self._reader.onwards(state)
        return found if found is state else self._keep(found)

    async def find_id_vid(self, id_: UUID, vid: EventId) -> StateT:
        """The state as it was at an earlier version: after that event, and before the next one.

        All events up to then are read, from a snapshot on if there is one that is old enough.

        Raises:
            UnknownHistoryError, UnknownEventError: it was never there.
            TrimmedError: what led to it is gone.
            JournalError, UnknownEventTypeError, InvalidEventTypeError, SerializationError: as for `find_id`.
        """
        return await self._reader.earlier(id_, vid)

    def _keep(self, state: StateT) -> StateT:
        if state.vid == EPOCH:
            self._cache.drop(state.id)
        else:
            self._cache.put(state.id, state)
        return state

    async def tell_state(self, state: StateT, command: CommandT) -> StateT:
        """Tell a command to a state, which has to be the present one; the state afterwards.

        Raises:
            VersionConflictError: it is not the present one; nothing was written.
        """
        (outcome,) = self._outcomes(state, [command])
        if isinstance(outcome, Exception):
            raise outcome
        after, events = outcome
        if events:
            await self._uninterrupted(state, events)
            self._keep(after)
        self.counts.commands += 1
        return after

    async def tell_id_vid(self, id_: UUID, vid: Expectation, command: CommandT) -> EventId:
        """As `tell_id_vid_state`; the version afterwards."""
        return (await self.tell_id_vid_state(id_, vid, command)).vid

    async def tell_id_vid_state(self, id_: UUID, vid: Expectation, command: CommandT) -> StateT:
        """Tell a command to an aggregate; the state afterwards.

        Args:
            id_: of the aggregate.
            vid: the version that it must have (`EPOCH`: none); or `NO_VC`, any; or `RETRY_NO_VC`, any, with
                more tries if somebody else commits at the same time.
            command: to tell. No facts, or a repeat, is success, and leaves the version as it is.

        Raises:
            VersionConflictError: the aggregate has another version, or somebody else was faster.
            RetryNoVCError: the last of the tries has met an error, which is its cause.
        """
        if vid is not RETRY_NO_VC:
            async with self._locks.of(id_):
                return await self._tell(id_, vid, command)
        telling = _Telling[StateT, CommandT](command, asyncio.get_running_loop().create_future())
        waiting = self._waiting.setdefault(id_, deque())
        waiting.append(telling)
        try:
            async with self._locks.of(id_):
                if not telling.answer.done():
                    await self._tell_waiting(id_, waiting)
            return await telling.answer
        finally:
            telling.answer.cancel()
            waiting.remove(telling)
            if not waiting and self._waiting.get(id_) is waiting:
                del self._waiting[id_]

    async def _tell(self, id_: UUID, vid: Expectation, command: CommandT) -> StateT:
        state = await self.find_id(id_)
        if self._is_repeat(state, command):
            self.counts.commands += 1
            return state
        if isinstance(vid, EventId) and state.vid != vid:
            raise VersionConflictError(id_, state.vid, vid)
        return await self.tell_state(state, command)

    async def delete_id_vid(self, id_: UUID, vid: Expectation, command: CommandT) -> None:
        """Delete an aggregate, if `command` does not refuse; one that is not there is deleted already.

        Raises:
            VersionConflictError: the aggregate has another version, or somebody else was faster.
            InvalidDeleteBehaviorError: the command came to facts.
        """
        async with self._locks.of(id_):
            state = await self.find_id(id_)
            if isinstance(vid, EventId) and state.vid != vid:
                raise VersionConflictError(id_, state.vid, vid)
            if state.vid == EPOCH:
                return
            if self._behavior.tell(state, command):
                raise InvalidDeleteBehaviorError(f"{command!r} came to facts, and was to delete {id_}")
            self._cache.drop(id_)
            await self._journal.delete(id_, state.vid)

    # Several commands, one commit

    async def _tell_waiting(self, id_: UUID, waiting: deque[_Telling[StateT, CommandT]]) -> None:
        batch = list(waiting)[: self._options.batch]
        number = 1
        while batch := [telling for telling in batch if not telling.answer.done()]:
            try:
                await self._tell_together(id_, batch, number)
            except (VersionConflictError, UnknownHistoryError) as error:
                if number == self._options.tries:
                    self._fail(id_, batch, error, number)
                    return
                await self._pause(number)
                number += 1
                self.counts.retries += 1
            except TransactionTooLargeError as error:
                # No try of anybody: nothing was in the way but the others of this batch.
                if len(batch) == 1:
                    self._fail(id_, batch, error, number)
                    return
                del batch[len(batch) // 2 :]
            except Exception as error:  # noqa: BLE001 - everybody who waits is told
                self._fail(id_, batch, error, number)
                return

    async def _tell_together(
        self, id_: UUID, batch: Sequence[_Telling[StateT, CommandT]], number: int
    ) -> None:
        state = await self.find_id(id_)
        outcomes = self._outcomes(state, [telling.command for telling in batch], repeats=True)
        events = [event for outcome in outcomes if not isinstance(outcome, Exception) for event in outcome[1]]
        answers = list(zip(batch, outcomes, strict=True))

        def answer() -> None:
            for telling, outcome in answers:
                if isinstance(outcome, Exception):
                    self._fail(id_, [telling], outcome, number)
                elif not telling.answer.done():
                    self.counts.commands += 1
                    telling.answer.set_result(outcome[0])
            present = [outcome[0] for outcome in outcomes if not isinstance(outcome, Exception)]
            if present:
                self._keep(present[-1])

        if events:
            await self._uninterrupted(state, events, answer)
        else:
            answer()

    def _outcomes(
        self, state: StateT, commands: Sequence[CommandT], *, repeats: bool = False
    ) -> list[tuple[StateT, list[NewEvent]] | Exception]:
        """What commands come to, one after the other: the state after each, and its events."""
        outcomes: list[tuple[StateT, list[NewEvent]] | Exception] = []
        for command in commands:
            events: list[NewEvent] = []
            try:
                if not (repeats and self._is_repeat(state, command)):
                    state, events = self._advance(state, self._behavior.tell(state, command))
            except Exception as error:  # noqa: BLE001 - the answer to whoever has told the command
                outcomes.append(error)
            else:
                outcomes.append((state, events))
        return outcomes

    def _advance(self, state: StateT, facts: Sequence[FactT]) -> tuple[StateT, list[NewEvent]]:
        if not facts:
            return state, []
        advancer = self._behavior.new_advancer()
        events: list[NewEvent] = []
        vid = state.vid
        for fact in facts:
            vid = self._journal.ids.new(vid)
            events.append(NewEvent.of(self._behavior.new_message(fact), vid))
            state = advancer.advance(state, Event(vid, fact))
        return state.with_vid(vid), events

    def _is_repeat(self, state: StateT, command: CommandT) -> bool:
        return self._repeatable is not None and self._repeatable.is_repeat(state, command)

    def _fail(
        self, id_: UUID, batch: Sequence[_Telling[StateT, CommandT]], error: Exception, number: int
    ) -> None:
        for telling in batch:
            if not telling.answer.done():
                last = number == self._options.tries
                telling.answer.set_exception(RetryNoVCError(id_, number, error) if last else error)
                # The one who waits may be gone.
                telling.answer.exception()

    async def _pause(self, number: int) -> None:
        options = self._options
        longest = nanos_of(options.first_pause) * options.pause_growth ** (number - 1)
        waker = asyncio.get_running_loop().create_future()
        await sleep_for(options.clock, round(options.random.uniform(0, longest)), waker)

    # Commits

    async def _uninterrupted(
        self, state: StateT, events: Sequence[NewEvent], then: Callable[[], None] | None = None
    ) -> None:
        """Commit, and then call `then`, also if the caller is cancelled meanwhile."""
        commit = asyncio.ensure_future(self._commit(state, events, then))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])
            if not commit.cancelled():
                # Told to nobody: those who wait will find out by themselves.
                commit.exception()
            raise

    async def _commit(
        self, state: StateT, events: Sequence[NewEvent], then: Callable[[], None] | None
    ) -> None:
        for number in range(1, _RECOMMITS + 1):
            try:
                await self._journal.commit(state.id, events, state.vid, type=self._type)
            except (VersionConflictError, UnknownHistoryError):
                self.counts.conflicts += 1
                raise
            except EventCommitUnknownError:
                # The events have ids: to commit them again does no harm, and tells.
                if number == _RECOMMITS:
                    self._cache.drop(state.id)
                    raise
                await self._pause(number)
            else:
                break
        self.counts.commits += 1
        if then is not None:
            then()
