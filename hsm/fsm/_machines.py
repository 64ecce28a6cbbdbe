"""Machines in the storage contract: what is remembered of them, and what a change of one writes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import attrs

from hsm.fsm._rows import decode, deleted_key, history_key, machine_key, state_key
from hsm.fsm._turns import Key
from persistence.proto.fsm_pb2 import MachineRow
from persistence.proto.statemachine_pb2 import Event
from persistence.store import (
    ABSENT,
    CheckRequest,
    Concurrency,
    DeleteRequest,
    EngineStore,
    GetRequest,
    Operation,
    SetOptions,
    SetRequest,
)

__all__ = ["IF_ABSENT", "MARK", "OWN_OPERATIONS", "Change", "Held", "Machines", "history_deletes"]

IF_ABSENT: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
MARK: Final = b"1"  # nobody reads it: the key says all
_SWEPT_AT_ONCE: Final = 16
OWN_OPERATIONS: Final = _SWEPT_AT_ONCE + 3
"""Operations of a change beside one for each event of its history."""


@attrs.frozen
class Held:
    """A machine as it was last read or written."""

    row: MachineRow
    etag: str


class Machines:
    """Machines that were used lately, so that an event to one needs no read. Each write checks the etag."""

    def __init__(self, store: EngineStore, capacity: int) -> None:
        self._store = store
        self._capacity = capacity
        self._held: OrderedDict[Key, Held] = OrderedDict()

    def remembered(self, key: Key) -> Held | None:
        """A machine as it is remembered, perhaps out of date; None if it is not."""
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
        return held

    async def read(self, partition: str, id_: str) -> Held | None:
        """A machine as it is, which is remembered; None if there is none. For whoever has the turn."""
        held = await self.look_at(partition, id_)
        if held is None:
            self.forget((partition, id_))
        else:
            self.remember((partition, id_), held)
        return held

    async def look_at(self, partition: str, id_: str) -> Held | None:
        """A machine as it is; None if there is none. The answer may be older than what is remembered."""
        response = await self._store.get(GetRequest(partition=partition, key=machine_key(id_)))
        if response.data is None or response.etag is None:
            return None
        return Held(decode(MachineRow.FromString, response.data, f"machine {id_!r}"), response.etag)

    def remember(self, key: Key, held: Held) -> None:
        """A machine was read or written."""
        self._held[key] = held
        self._held.move_to_end(key)
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)

    def forget(self, key: Key) -> None:
        """What is remembered of a machine is out of date."""
        self._held.pop(key, None)


class Change:
    """One change of one machine, as it grows: first of its row, then as operations of a multi."""

    def __init__(self, partition: str, id_: str, held: Held | None, *, first_number: int) -> None:
        """Begin with what there is. The history of a new machine is numbered from `first_number`."""
        self._partition = partition
        self._id = id_
        self._held = held
        self._events: list[SetRequest] = []
        self.row = MachineRow()
        if held is None:
            self.row.history_first = self.row.history_next = self.row.history_swept = first_number
        else:
            self.row.CopyFrom(held.row)

    @property
    def is_new(self) -> bool:
        """Whether there was no such machine."""
        return self._held is None

    def add_event(self, event: Event) -> None:
        """Put an event at the end of the history."""
        key = history_key(self._id, self.row.history_next)
        self._events.append(SetRequest(partition=self._partition, key=key, value=event.SerializeToString()))
        self.row.history_next += 1

    def forget_history(self) -> None:
        """Begin the history anew."""
        self.row.history_first = self.row.history_next
        self.row.history_dropped = 0

    def cap_history(self, longest: int) -> None:
        """Drop the oldest events of a history that is too long."""
        excess = self.row.history_next - self.row.history_first - longest
        if excess > 0:
            self.row.history_first += excess
            self.row.history_dropped += excess

    @property
    def condition(self) -> CheckRequest:
        """That the machine is what it was at the beginning."""
        etag = ABSENT if self._held is None else self._held.etag
        return CheckRequest(self._partition, machine_key(self._id), etag)

    def operations(self) -> list[Operation]:
        """What writes the change, if the machine is what it was at the beginning."""
        held = self._held
        operations: list[Operation] = [
            *self._index(),
            *self._events,
            *self._sweep(),
        ]
        key, value = machine_key(self._id), self.row.SerializeToString()
        condition = (
            SetRequest(partition=self._partition, key=key, value=value, options=IF_ABSENT)
            if held is None
            else SetRequest(partition=self._partition, key=key, value=value, etag=held.etag)
        )
        return [condition, *operations]

    def deletion(self, most_operations: int) -> tuple[list[Operation], str | None]:
        """What deletes the machine, takes it out of the index, and deletes its history.

        A history that does not fit is left, and a row that says so, whose key is answered: whoever deletes
        the history deletes that row at last, so that a crash leaves nothing that nobody knows of.
        """
        assert self._held is not None
        row, key = self._held.row, machine_key(self._id)
        operations: list[Operation] = [
            DeleteRequest(partition=self._partition, key=key, etag=self._held.etag),
            DeleteRequest(partition=self._partition, key=state_key(row.state, self._id)),
        ]
        if len(operations) + row.history_next - row.history_swept <= most_operations:
            deletes = history_deletes(self._partition, self._id, row.history_swept, row.history_next)
            return [*operations, *deletes], None
        left = deleted_key(self._id, row.history_next)
        value = row.SerializeToString()
        return [*operations, SetRequest(partition=self._partition, key=left, value=value)], left

    def _index(self) -> Sequence[Operation]:
        before = None if self._held is None else self._held.row.state
        if before == self.row.state:
            return ()
        added = SetRequest(partition=self._partition, key=state_key(self.row.state, self._id), value=MARK)
        if before is None:
            return (added,)
        return (DeleteRequest(partition=self._partition, key=state_key(before, self._id)), added)

    def _sweep(self) -> Sequence[Operation]:
        """Delete some of the events that are in the history no more."""
        first = self.row.history_swept
        if first == self.row.history_first:
            return ()
        # An event of this very change is written after it would be deleted here.
        known = first if self._held is None else self._held.row.history_next
        last = min(self.row.history_first, first + _SWEPT_AT_ONCE, known)
        self.row.history_swept = max(first, last)
        return history_deletes(self._partition, self._id, first, last)


def history_deletes(partition: str, id_: str, first: int, end: int) -> list[Operation]:
    """What deletes the events of a history from a number on, up to another one."""
    return [DeleteRequest(partition=partition, key=history_key(id_, number)) for number in range(first, end)]
