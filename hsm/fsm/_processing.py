"""Events to machines: one transaction for what happens, however many events it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from hsm.fsm._configurations import Configurations
from hsm.fsm._machines import IF_ABSENT, OWN_OPERATIONS, Change, Held, Machines
from hsm.fsm._moves import Moves
from hsm.fsm._rows import (
    damaged_key,
    decode,
    event_key,
    machine_partition,
    notification_key,
    outcome_key,
    pending_key,
    position_of,
)
from hsm.fsm._turns import Key, Turns, pause_after
from hsm.fsm.errors import (
    ConfigurationNotFoundError,
    InvalidDataError,
    NotFoundError,
    RevisionMismatchError,
    TooManyAttemptsError,
    UnexpectedTransitionError,
)
from hsm.fsm.outcomes import outcome_of
from hsm.fsm.store import AcceptedEvent
from persistence.errors import CommitOutcomeUnknownError, ETagMismatchError, TransactionTooLargeError
from persistence.proto.fsm_pb2 import EventRow, OutcomeRow
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, EventResponse
from persistence.store import DeleteRequest, EngineStore, GetRequest, Operation, SetRequest

__all__ = ["Processing", "Recorder", "events_in_transaction"]

_OPERATIONS_OF_EVENT: Final = 5


@attrs.frozen
class Recorder:
    """What is written about an event and its outcome, in the transaction of its machine."""

    event_metadata: dict[str, str]
    outcome_metadata: dict[str, str]
    notify: bool
    notify_all: bool
    now: Callable[[], int]

    def operations(self, partition: str, event: AcceptedEvent, outcome: EventOutcome) -> list[Operation]:
        """Event and outcome; the event is pending no more. Fails if there is an outcome already."""
        request = event.request
        event_id = request.event.event_id
        row = OutcomeRow(outcome=outcome)
        # One row costs less than two, and lives as long as both of them.
        together = not event.position and self.event_metadata == self.outcome_metadata
        if together:
            row.event.CopyFrom(request.event)
        operations: list[Operation] = [
            SetRequest(
                partition=partition,
                key=outcome_key(event_id),
                value=row.SerializeToString(),
                metadata=self.outcome_metadata,
                options=IF_ABSENT,
            )
        ]
        if together:
            return operations
        if event.damage is not None:
            key = damaged_key(request.id, event.position)
            operations.append(SetRequest(partition=partition, key=key, value=event.damage))
        elif not event.position or self.event_metadata:
            # One that was accepted is kept for as long as it is pending; its time to live begins now.
            sent = EventRow(event=request.event, machine_id=request.id, position=event.position)
            operations.append(
                SetRequest(
                    partition=partition,
                    key=event_key(event_id),
                    value=sent.SerializeToString(),
                    metadata=self.event_metadata,
                )
            )
        if event.position:
            key = pending_key(request.id, event.position)
            operations.append(DeleteRequest(partition=partition, key=key))
            if self.notify_all or (self.notify and outcome.code != EventOutcome.Ok):
                response = EventResponse(event_id=event_id, outcome=outcome)
                key = notification_key(position_of(self.now(), event_id))
                operations.append(
                    SetRequest(partition=partition, key=key, value=response.SerializeToString())
                )
        return operations


class Processing:
    """Carries out events to one machine at a time. Several at once for one machine would only conflict."""

    def __init__(
        self,
        store: EngineStore,
        namespace: str,
        machines: Machines,
        configurations: Configurations,
        recorder: Recorder,
        turns: Turns,
        *,
        history_cap: int | None,
        max_attempts: int,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._machines = machines
        self._configurations = configurations
        self._recorder = recorder
        self._turns = turns
        self._history_cap = history_cap
        self._max_attempts = max_attempts

    async def process(self, name: str, id_: str, events: Sequence[AcceptedEvent]) -> list[EventOutcome]:
        """The outcomes of events to a machine, each its first one."""
        key = (machine_partition(self._namespace, name), id_)
        waiting: dict[str, AcceptedEvent] = {event.request.event.event_id: event for event in events}
        outcomes: dict[str, EventOutcome] = {}
        attempt = 0
        while waiting:
            if not self._turns.take(key):
                await self._turns.wait(key)
            try:
                await self._commit(key, name, waiting, outcomes)
                break
            except TransactionTooLargeError as error:
                if len(waiting) == 1:
                    raise InvalidDataError(f"event to machine {id_!r} of {name!r}: {error}") from error
                failure: Exception = error
            except (ETagMismatchError, CommitOutcomeUnknownError) as error:
                failure = error
            finally:
                self._turns.pass_on(key)
            if isinstance(failure, TransactionTooLargeError):
                half = len(events) // 2
                return await self.process(name, id_, events[:half]) + await self.process(
                    name, id_, events[half:]
                )
            self._machines.forget(key)
            if await self._look_up(key[0], waiting, outcomes):
                continue
            attempt += 1
            if attempt >= self._max_attempts:
                raise TooManyAttemptsError(
                    f"machine {id_!r} of {name!r}: retries exceeded ({attempt} attempts)"
                ) from failure
            await pause_after(attempt)
        return [outcomes[event.request.event.event_id] for event in events]

    async def _commit(
        self, key: Key, name: str, events: Mapping[str, AcceptedEvent], outcomes: dict[str, EventOutcome]
    ) -> None:
        """Carry out events, and add what became of them to `outcomes`."""
        partition, id_ = key
        held = self._machines.remembered(key) or await self._machines.read(partition, id_)
        moves = None if held is None else self._configurations.remembered(held.row.config_id)
        known: Moves | NotFoundError = moves or await self._moves(name, id_, held)
        change = Change(partition, id_, held, first_number=0 if held else self._recorder.now())
        made = {event_id: _outcome(change, known, event.request) for event_id, event in events.items()}
        changed = held is not None and change.row.revision != held.row.revision
        if self._history_cap is not None:
            change.cap_history(self._history_cap)
        operations: list[Operation] = change.operations() if changed else [change.condition]
        for event_id, event in events.items():
            operations += self._recorder.operations(partition, event, made[event_id])
        etag = await self._store.multi(operations)
        if changed:
            self._machines.remember(key, Held(change.row, etag))
        outcomes |= made

    async def _moves(self, name: str, id_: str, held: Held | None) -> Moves | NotFoundError:
        """What the machine follows, or why its events lead nowhere."""
        try:
            if held is not None:
                return await self._configurations.moves(held.row.config_id)
        except ConfigurationNotFoundError as error:
            return error
        if not await self._configurations.knows(name):
            return ConfigurationNotFoundError(name)
        return NotFoundError(id_)

    async def _look_up(
        self, partition: str, waiting: dict[str, AcceptedEvent], outcomes: dict[str, EventOutcome]
    ) -> bool:
        """Move what has an outcome already from `waiting` to `outcomes`; whether there is any."""
        known = await self._known(partition, list(waiting.values()))
        outcomes |= known
        for event_id in known:
            del waiting[event_id]
        return bool(known)

    async def _known(self, partition: str, events: Sequence[AcceptedEvent]) -> dict[str, EventOutcome]:
        """The outcomes that there are already, of events that are then pending no more."""
        ids = [event.request.event.event_id for event in events]
        requests = [GetRequest(partition=partition, key=outcome_key(event_id)) for event_id in ids]
        known: dict[str, EventOutcome] = {}
        for event_id, entry in zip(ids, await self._store.bulk_get(requests), strict=True):
            if entry.error is not None:
                raise entry.error
            if entry.data is not None:
                row = decode(OutcomeRow.FromString, entry.data, f"outcome of {event_id!r}")
                known[event_id] = row.outcome
        settled = [
            DeleteRequest(partition=partition, key=pending_key(event.request.id, event.position))
            for event in events
            if event.position and event.request.event.event_id in known
        ]
        if settled:
            await self._store.multi(settled)
        return known


def events_in_transaction(operations: int) -> int:
    """How many events fit into a transaction of so many operations; one at least is tried."""
    return max(1, (operations - OWN_OPERATIONS) // _OPERATIONS_OF_EVENT)


def _outcome(change: Change, moves: Moves | NotFoundError, request: EventRequest) -> EventOutcome:
    """What an event does to a machine, in memory; a refused one does nothing."""
    row = change.row
    try:
        if request.HasField("expected_revision") and request.expected_revision != row.revision:
            raise RevisionMismatchError(
                repr(request.id), expected=request.expected_revision, actual=row.revision
            )
        if isinstance(moves, NotFoundError):
            raise moves
        made = moves.made(row.state, request.event)
    except (NotFoundError, RevisionMismatchError, UnexpectedTransitionError) as error:
        return outcome_of(error, id=request.id, config=request.config)
    change.add_event(made)
    row.state = made.transition.to
    row.revision += 1
    return EventOutcome(id=request.id, config=request.config, revision=row.revision)
