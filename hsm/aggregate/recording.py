"""Recording: the transitions of an execution as a history of events, for whoever follows the journal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID, uuid5

from google.protobuf.message import DecodeError

from hsm.engine import Engine
from hsm.engine.history import tree_of
from hsm.engine.info import HistoryEntry
from hsm.errors import SerializationError
from hsm.machine import VersionedTransition
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import Node
from persistence.errors import TransactionTooLargeError
from persistence.executions import escape
from persistence.journal import EPOCH, Event, EventId, Journal, NewEvent, VersionConflictError
from persistence.proto.execution_pb2 import HistoryRow
from persistence.proto.nogevents_pb2 import Event as Message

__all__ = ["EXECUTION_CHANGED", "ExecutionRecorder", "history_of", "recorded_tree"]

EXECUTION_CHANGED: Final = "hsm.execution.changed"
"""The type of the events: one for each commit of the execution."""

_NAMES: Final = UUID("5f2b1c6e-0d0f-4b1a-9a57-6a0a7f1e4c11")
_BATCH: Final = 50


def history_of(key: ExecutionKey) -> UUID:
    """The history of an execution, whose run id has to be there.

    Raises:
        ValueError: it is not.
    """
    if not key.run_id:
        raise ValueError(f"the history of {key} is that of one run: name it")
    return uuid5(_NAMES, "/".join(map(escape, key)))


class ExecutionRecorder:
    """Copies the history of executions into a journal, each commit as one event, once and in order.

    The execution has to keep its history (`Engine.start(history=True)`): that is written in the same
    transaction as the tree, and so nothing is missing here, however late it is copied and by how many.
    """

    def __init__(self, engine: Engine, journal: Journal) -> None:
        """Copy from an engine to a journal; both are open, and may be on different stores."""
        self._engine = engine
        self._journal = journal

    async def record(self, key: ExecutionKey) -> int:
        """Copy what has come since the last time; how many events that were.

        Raises:
            ExecutionNotFoundError: there is no such execution.
            JournalError: the journal does not take them.
            TransactionTooLargeError: one of them alone is too large for the journal's store.
        """
        if not key.run_id:
            key = (await self._engine.describe(key)).info.key
        history = history_of(key)
        count, size = 0, _BATCH
        while True:
            head, last = await self._last(history)
            batch: list[NewEvent] = []
            after = 0 if last is None else last.transition_count
            async for entry in self._engine.history(key, after=after):
                batch.append(_event(entry))
                if len(batch) == size:
                    break
            if not batch:
                return count
            try:
                await self._journal.commit(history, batch, head, type=EXECUTION_CHANGED)
            except VersionConflictError:
                # Somebody else records, too.
                continue
            except TransactionTooLargeError:
                if len(batch) == 1:
                    raise
                size = len(batch) // 2
                continue
            count += len(batch)

    async def follow(self, ref: Ref) -> None:
        """Copy each commit soon after it was made, until cancelled."""
        key = ref.execution
        if not key.run_id:
            key = (await self._engine.describe(key)).info.key
        history = history_of(key)
        while True:
            await self.record(key)
            _, last = await self._last(history)

            def has_moved(node: Node, last: VersionedTransition | None = last) -> bool:
                return last is None or node.version > last

            await self._engine.wait(Ref(key), has_moved)

    async def _last(self, history: UUID) -> tuple[EventId, VersionedTransition | None]:
        async for event in self._journal.find(history, reverse=True, limit=1):
            version = _row(event).version
            return event.id, VersionedTransition(version.failover_version, version.max_transition_count)
        return EPOCH, None


def recorded_tree(registry: Registry, events: Iterable[Event]) -> Node:
    """The tree of an execution as it was after the last of its recorded events, read from the first one on.

    Raises:
        NoHistoryError: there are no events.
        SerializationError: an event is of something else.
    """
    return tree_of(registry, map(_row, events))


def _event(entry: HistoryEntry) -> NewEvent:
    return NewEvent.of(Message(event=Message.EV_NAMED, type_name=EXECUTION_CHANGED, payload=entry.data))


def _row(event: Event) -> HistoryRow:
    message = event.message()
    try:
        if message.type_name != EXECUTION_CHANGED:
            raise DecodeError(f"its type is {message.type_name!r}")
        return HistoryRow.FromString(message.payload)
    except DecodeError as error:
        raise SerializationError(f"event {event.id} is none of an execution: {error}") from error
