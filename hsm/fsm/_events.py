"""Events and outcomes in the storage contract: put, accepted, pending, settled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import DecodeError

from hsm.fsm._accepted import accepted_event
from hsm.fsm._configurations import Configurations
from hsm.fsm._machines import IF_ABSENT
from hsm.fsm._processing import Recorder
from hsm.fsm._rows import (
    NOTIFICATIONS,
    PENDING,
    check_stored_id,
    decode,
    event_key,
    event_of,
    machine_partition,
    notification_key,
    outcome_key,
    pending_key,
    pending_machine,
    pending_prefix,
    position_of,
)
from hsm.fsm.errors import (
    AlreadyExistsError,
    ConfigurationNotFoundError,
    InvalidDataError,
    NotFoundError,
    OutcomePendingError,
)
from hsm.fsm.store import Acceptance, AcceptedEvent, Notification
from persistence.errors import ETagMismatchError
from persistence.options import prefix_end
from persistence.proto.fsm_pb2 import EventRow, OutcomeRow
from persistence.proto.statemachine_pb2 import Event, EventOutcome, EventRequest, EventResponse
from persistence.store import (
    ABSENT,
    Absent,
    CheckRequest,
    DeleteRequest,
    EngineStore,
    GetRequest,
    GetResponse,
    SetRequest,
)

__all__ = ["Events"]

_PAGE: Final = 100

_logger: Final = logging.getLogger(__name__)


class Events:
    """The events of a namespace."""

    def __init__(
        self, store: EngineStore, namespace: str, configurations: Configurations, recorder: Recorder
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._configurations = configurations
        self._recorder = recorder

    async def get(self, event_id: str, name: str) -> Event:
        """An event, or `NotFoundError`."""
        found = await self._event(event_id, name)
        if found is None:
            raise NotFoundError(f"{name}#{event_id}")
        return found

    async def put(self, event: Event, name: str, metadata: Mapping[str, str]) -> None:
        """Store an event, unless there is another of its id."""
        event_id = event.event_id
        check_stored_id(event_id, "event id")
        partition = self._partition(name)
        request = SetRequest(
            partition=partition,
            key=event_key(event_id),
            value=EventRow(event=event).SerializeToString(),
            metadata=metadata,
            options=IF_ABSENT,
        )
        outcome: str | Absent = ABSENT
        while True:
            try:
                await self._store.multi((request, CheckRequest(partition, outcome_key(event_id), outcome)))
            except ETagMismatchError as error:
                found = await self._event(event_id, name)
                if found is None:
                    # It has expired meanwhile; or it has an outcome that does not say what it was.
                    outcome = (await self._get(outcome_key(event_id), name)).etag or ABSENT
                    continue
                if found != event:
                    raise AlreadyExistsError(f"{name}#{event_id}") from error
            return

    async def add_outcome(
        self, event_id: str, name: str, outcome: EventOutcome, metadata: Mapping[str, str]
    ) -> None:
        """Store an outcome, unless there is another."""
        check_stored_id(event_id, "event id")
        request = SetRequest(
            partition=self._partition(name),
            key=outcome_key(event_id),
            value=OutcomeRow(outcome=outcome).SerializeToString(),
            metadata=metadata,
            options=IF_ABSENT,
        )
        while True:
            try:
                await self._store.multi((request,))
            except ETagMismatchError as error:
                found = await self._outcome(event_id, name)
                if found is None:
                    continue
                if found != outcome:
                    raise AlreadyExistsError(f"{name}#{event_id}") from error
            return

    async def outcome(self, event_id: str, name: str) -> EventOutcome:
        """An outcome; `OutcomePendingError` or `NotFoundError` if there is none."""
        found = await self._outcome(event_id, name)
        if found is not None:
            return found
        row, _ = await self._row(event_id, name)
        if row is None:
            raise NotFoundError(f"{name}#{event_id}")
        # It may have had its outcome between the two reads.
        found = await self._outcome(event_id, name)
        if found is None:
            raise OutcomePendingError(f"{name}#{event_id}")
        return found

    async def accept(self, request: EventRequest, nanos: int) -> Acceptance:
        """Store an event as pending; or what there is of it already."""
        name, event_id = request.config, request.event.event_id
        check_stored_id(event_id, "event id")
        check_stored_id(request.id, "machine id")
        if not await self._configurations.knows(name):
            raise ConfigurationNotFoundError(name)
        position = position_of(nanos, event_id)
        etag: str | None = None
        while True:
            try:
                await self._accept(request, position, etag)
                return Acceptance(pending=AcceptedEvent(request, position))
            except ETagMismatchError:
                outcome = await self._outcome(event_id, name)
                if outcome is not None:
                    return Acceptance(outcome=outcome)
                row, etag = await self._row(event_id, name)
                if row is not None and row.position:
                    known = await self._pending_row(name, row)
                    if known is not None:
                        return Acceptance(pending=known)

    async def _accept(self, request: EventRequest, position: str, etag: str | None) -> None:
        partition = self._partition(request.config)
        row = EventRow(event=request.event, machine_id=request.id, position=position).SerializeToString()
        key = event_key(request.event.event_id)
        first = (
            SetRequest(partition=partition, key=key, value=row, options=IF_ABSENT)
            if etag is None
            else SetRequest(partition=partition, key=key, value=row, etag=etag)
        )
        pending = SetRequest(
            partition=partition, key=pending_key(request.id, position), value=request.SerializeToString()
        )
        no_outcome = CheckRequest(partition, outcome_key(request.event.event_id), ABSENT)
        await self._store.multi((first, pending, no_outcome))

    async def _pending_row(self, name: str, row: EventRow) -> AcceptedEvent | None:
        key = pending_key(row.machine_id, row.position)
        response = await self._store.get(GetRequest(partition=self._partition(name), key=key))
        if response.data is None:
            return None
        return accepted_event(
            response.data,
            name=name,
            id_=row.machine_id,
            event_id=event_of(row.position),
            position=row.position,
        )

    async def next_pending_machine(self, name: str, after: str) -> str | None:
        """The machine with pending events that follows `after`."""
        start = prefix_end(pending_prefix(after)) if after else PENDING
        rows = self._store.scan(self._partition(name), start, prefix_end(PENDING), limit=1)
        return next(iter([pending_machine(item.key) async for item in rows]), None)

    async def pending(self, id_: str, name: str, limit: int | None) -> list[AcceptedEvent]:
        """Pending events of a machine, in order."""
        prefix = pending_prefix(id_)
        rows = self._store.scan(self._partition(name), prefix, prefix_end(prefix), limit=limit)
        events: list[AcceptedEvent] = []
        async for item in rows:
            position = item.key.removeprefix(prefix)
            event_id = event_of(position)
            events.append(
                accepted_event(item.value, name=name, id_=id_, event_id=event_id, position=position)
            )
        return events

    async def settle(self, event: AcceptedEvent, outcome: EventOutcome) -> EventOutcome:
        """Give an event an outcome, unless it has one."""
        request = event.request
        partition = self._partition(request.config)
        while True:
            try:
                await self._store.multi(self._recorder.operations(partition, event, outcome))
            except ETagMismatchError:
                try:
                    found = await self._outcome(request.event.event_id, request.config)
                except InvalidDataError as error:
                    # It has one, be it damaged; for it to stay pending would help nobody.
                    _logger.error("%s", error)  # noqa: TRY400  no defect of ours
                    found = outcome
                if found is None:
                    continue
                if event.position:
                    key = pending_key(request.id, event.position)
                    await self._store.multi((DeleteRequest(partition=partition, key=key),))
                return found
            return outcome

    async def notifications(self, name: str, after: str) -> tuple[list[Notification], str]:
        """Some notifications that follow a position, and the position where to go on; "" at the end."""
        start = notification_key(after) if after else NOTIFICATIONS
        rows = self._store.scan(self._partition(name), start, prefix_end(NOTIFICATIONS), limit=_PAGE)
        found: list[Notification] = []
        last = ""
        async for item in rows:
            position = item.key.removeprefix(NOTIFICATIONS)
            if position == after:
                continue
            last = position
            response = await self._response(name, position, item.value)
            if response is not None:
                found.append(Notification(name, position, response))
        return found, last

    async def _response(self, name: str, position: str, stored: bytes) -> EventResponse | None:
        """What somebody is to be told; from the outcome, if the notification is damaged."""
        try:
            return EventResponse.FromString(stored)
        except DecodeError as error:
            _logger.error("notification %r of %r cannot be decoded: %s", position, name, error)  # noqa: TRY400
        event_id = event_of(position)
        try:
            outcome = await self._outcome(event_id, name)
        except InvalidDataError:
            outcome = None
        return None if outcome is None else EventResponse(event_id=event_id, outcome=outcome)

    async def remove_notification(self, notification: Notification) -> None:
        """Forget a notification."""
        key = notification_key(notification.position)
        await self._store.delete(DeleteRequest(partition=self._partition(notification.config), key=key))

    async def _row(self, event_id: str, name: str) -> tuple[EventRow | None, str | None]:
        response = await self._get(event_key(event_id), name)
        if response.data is None:
            return None, None
        return decode(EventRow.FromString, response.data, f"event {event_id!r}"), response.etag

    async def _event(self, event_id: str, name: str) -> Event | None:
        row, _ = await self._row(event_id, name)
        if row is not None:
            return row.event
        outcome = await self._outcome_row(event_id, name)
        return outcome.event if outcome is not None and outcome.HasField("event") else None

    async def _outcome(self, event_id: str, name: str) -> EventOutcome | None:
        row = await self._outcome_row(event_id, name)
        return None if row is None else row.outcome

    async def _outcome_row(self, event_id: str, name: str) -> OutcomeRow | None:
        response = await self._get(outcome_key(event_id), name)
        if response.data is None:
            return None
        return decode(OutcomeRow.FromString, response.data, f"outcome of event {event_id!r}")

    async def _get(self, key: str, name: str) -> GetResponse:
        return await self._store.get(GetRequest(partition=self._partition(name), key=key))

    def _partition(self, name: str) -> str:
        return machine_partition(self._namespace, name)
