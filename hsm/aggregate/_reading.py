"""Reading aggregates: from a snapshot, and on from a state, however stale."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import Any, Generic, cast
from uuid import UUID

from hsm.aggregate.behavior import Behavior, Event, FactT, Snapshotting, StateT
from hsm.aggregate.errors import UnknownEventTypeError
from hsm.aggregate.options import UnknownEvents
from hsm.errors import HSMError
from persistence.errors import PersistenceError
from persistence.journal import EPOCH, Event as JournalEvent, EventId, Journal, StaleCursorError, TrimmedError

__all__ = ["Reader"]

_logger = logging.getLogger(__name__)


class Reader(Generic[StateT, FactT]):
    """Reads the histories of one kind of aggregate."""

    def __init__(
        self, journal: Journal, behavior: Behavior[StateT, Any, FactT], unknown_events: UnknownEvents
    ) -> None:
        self._journal = journal
        self._behavior = behavior
        self._skips = unknown_events is UnknownEvents.SKIP
        self._has_skipped = False
        # Which states it is about, no check at run time can tell.
        self._snapshotting = (
            cast("Snapshotting[StateT]", behavior) if isinstance(behavior, Snapshotting) else None
        )

    async def present(self, id_: UUID) -> StateT:
        """The present state, from the last snapshot on if there is one that can be used."""
        new, restored = self._behavior.new_state(id_), await self._restored(id_)
        return await self.onwards(new if restored is None else restored)

    async def earlier(self, id_: UUID, vid: EventId) -> StateT:
        """The state as it was when `vid` was its version."""
        state = self._behavior.new_state(id_)
        if vid == EPOCH:
            return state
        # An event that never was, or is gone, is told as such.
        async with aclosing(self._journal.find(id_, vid, limit=1)) as following:
            async for _ in following:
                break
        restored = await self._restored(id_)
        if restored is not None and restored.vid <= vid:
            state = restored
        if state.vid == vid:
            return state
        advancer = self._behavior.new_advancer()
        async with aclosing(self._journal.find(id_, state.vid)) as events:
            async for event in events:
                if event.id > vid:
                    raise TrimmedError(id_, vid, event.parent)
                fact = self._fact(event)
                if fact is not None:
                    state = advancer.advance(state, fact)
                if event.id == vid:
                    return state.with_vid(vid)
        raise TrimmedError(id_, vid, vid)

    async def _restored(self, id_: UUID) -> StateT | None:
        """The state of the last snapshot, if there is one that can be used."""
        snapshotting = self._snapshotting
        if snapshotting is None:
            return None
        snapshot = await self._journal.snapshots.load(id_, version=snapshotting.snapshot_version)
        if snapshot is None:
            return None
        return snapshotting.restore_state(id_, snapshot.data).with_vid(snapshot.event_id)

    async def onwards(self, state: StateT) -> StateT:
        """The present state, from another one on; that one itself if nothing has come since."""
        if state.vid == EPOCH:
            return await self._read(state)
        new = self._behavior.new_state(state.id)
        head = await self._journal.head(state.id)
        if head == state.vid:
            return state
        if head == EPOCH:
            return new
        try:
            return await self._read(state)
        except StaleCursorError:
            # Trimmed beyond it, or deleted and begun anew.
            return await self._read(new)

    async def _read(self, state: StateT) -> StateT:
        advancer = self._behavior.new_advancer()
        vid = state.vid
        count = 0
        async for event in self._journal.find(state.id, after=vid):
            vid = event.id
            count += 1
            fact = self._fact(event)
            if fact is not None:
                state = advancer.advance(state, fact)
        state = state.with_vid(vid) if vid != state.vid else state
        if count:
            await self._save(state, count)
        return state

    async def _save(self, state: StateT, count: int) -> None:
        """Save a snapshot if so many events are worth one."""
        snapshotting = self._snapshotting
        # A state without what newer programs know must not become the beginning of theirs.
        if snapshotting is None or count < snapshotting.snapshot_interval or self._has_skipped:
            return
        data, version = snapshotting.store_state(state), snapshotting.snapshot_version
        try:
            await self._journal.snapshots.save(state.id, state.vid, data, version=version)
        except PersistenceError as error:
            # What was asked for is the state, and that was read.
            _logger.warning("no snapshot of %s was saved: %s", state.id, error)

    def _fact(self, event: JournalEvent) -> Event[FactT] | None:
        """What an event tells; None if it is unknown, and that is to be tolerated."""
        try:
            return Event(event.id, self._behavior.new_event(event.message()))
        except UnknownEventTypeError:
            if self._skips:
                self._has_skipped = True
                return None
            raise
        except HSMError as error:
            error.add_note(f"event {event.id} of history {event.history}")
            raise
