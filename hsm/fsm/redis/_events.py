"""Events on Redis: what was sent, what became of it, what waits, and who is to be told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Final

from hsm.engine.clock import from_nanos
from hsm.fsm._accepted import accepted_event
from hsm.fsm.domain import check_request, update_event
from hsm.fsm.errors import (
    AlreadyExistsError,
    ConfigurationNotFoundError,
    InvalidDataError,
    NotFoundError,
    OutcomePendingError,
)
from hsm.fsm.keys import NEVER_EXPIRE
from hsm.fsm.redis._base import parsed, valid_id
from hsm.fsm.redis._changes import Pending
from hsm.fsm.redis._lifetimes import expiry, milliseconds_of
from hsm.fsm.redis._machines import Machines
from hsm.fsm.redis._replies import as_bytes, as_list
from hsm.fsm.store import Acceptance, AcceptedEvent, Notification
from persistence.proto.statemachine_pb2 import Event, EventOutcome, EventRequest, EventResponse

__all__ = ["Events"]

_PAGE: Final = 100


class Events(Machines):
    """The operations of `EventStore`."""

    async def get_event(self, event_id: str, name: str) -> Event:
        """An event as it was sent.

        Raises:
            NotFoundError: it is not known.
        """
        key = self._layout.event(event_id, name)
        (value,) = await self._ask(key, (b"GET", key))
        if value is None:
            raise NotFoundError(key.decode())
        return parsed(Event, value, key)

    async def put_event(self, event: Event, name: str, ttl: timedelta = NEVER_EXPIRE) -> None:
        """Store an event without sending it to a machine; it counts as pending. The same again does nothing.

        Raises:
            AlreadyExistsError: there is another event of this id.
            InvalidDataError: it has no id.
        """
        valid_id(event.event_id, "id of an event")
        key, value = self._layout.event(event.event_id, name), event.SerializeToString()
        written, found = await self._ask(
            key, (b"SET", key, value, b"NX", *expiry(milliseconds_of(ttl))), (b"GET", key)
        )
        if written is None and found is not None and parsed(Event, found, key) != event:
            raise AlreadyExistsError(key.decode())

    async def add_event_outcome(
        self, event_id: str, name: str, outcome: EventOutcome, ttl: timedelta = NEVER_EXPIRE
    ) -> None:
        """Store the outcome of an event, which need not be known. The same again does nothing.

        Raises:
            AlreadyExistsError: it has another outcome; the first one stays.
        """
        valid_id(event_id, "id of an event")
        first = await self._settle(event_id, name, outcome, milliseconds_of(ttl), told=False)
        if first != outcome:
            raise AlreadyExistsError(self._layout.outcome(event_id, name).decode())

    async def get_outcome_for_event(self, event_id: str, name: str) -> EventOutcome:
        """What became of an event.

        Raises:
            OutcomePendingError: the event is known and has no outcome yet.
            NotFoundError: it is not known.
        """
        key = self._layout.outcome(event_id, name)

        async def work(_: int) -> bytes | None:
            return await self._writer.outcome(event_id, name)

        value = await self._attempt(key.decode(), work)
        if value is not None:
            return self._outcome(value, event_id, name)
        event = self._layout.event(event_id, name)
        (known,) = await self._ask(event, (b"EXISTS", event))
        if known:
            # It may have had its outcome between the two reads.
            value = await self._attempt(key.decode(), work)
            if value is None:
                raise OutcomePendingError(event_id)
            return self._outcome(value, event_id, name)
        raise NotFoundError(key.decode())

    async def accept_event(self, request: EventRequest) -> Acceptance:
        """Store an event as pending, so that a crash does not lose it, or tell what became of it.

        It is as durable as the server makes what it has acknowledged.

        Raises:
            EventError, InvalidDataError: the request says too little; nothing was stored.
            ConfigurationNotFoundError: there is no configuration of this name.
        """
        check_request(request)
        valid_id(request.event.event_id, "id of an event")
        valid_id(request.id, "id of a machine")
        if not await self._knows(request.config):
            raise ConfigurationNotFoundError(request.config)
        copy = EventRequest()
        copy.CopyFrom(request)
        update_event(copy.event, now=from_nanos(self._options.clock.time_ns()))
        event_id, event = copy.event.event_id, copy.event.SerializeToString()
        value = copy.SerializeToString()

        async def work(_: int) -> Pending | bytes:
            return await self._writer.accept(request.id, request.config, event_id, event, value)

        found = await self._attempt(event_id, work)
        if isinstance(found, bytes):
            return Acceptance(outcome=self._outcome(found, event_id, request.config))
        accepted = accepted_event(
            found.request, name=request.config, id_=found.machine, event_id=event_id, position=found.place
        )
        return Acceptance(pending=accepted)

    async def pending_machines(self) -> AsyncIterator[tuple[str, str]]:
        """Configuration name and id of every machine with accepted events that have no outcome; no order."""
        async for name in self._names():

            async def work(_: int, name: str = name) -> Sequence[str]:
                return await self._writer.waiting(name)

            for id_ in await self._attempt(name, work):
                yield name, id_

    async def pending_events(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        *,
        limit: int | None = None,
    ) -> Sequence[AcceptedEvent]:
        """Accepted events to a machine without an outcome, whoever accepted them, in order of acceptance.

        Damaged ones are among them, where they stand.
        """
        machine = self._layout.machine(id, name)
        pending, requests = self._layout.pending(machine), self._layout.requests(machine)
        last = b"-1" if limit is None else b"%d" % (limit - 1)
        if limit is not None and limit < 1:
            return []
        (reply,) = await self._ask(pending, (b"ZRANGE", pending, b"0", last, b"WITHSCORES"))
        line = as_list(reply)
        if not line:
            return []
        ids = [as_bytes(each) for each in line[::2]]
        (values,) = await self._ask(requests, (b"HMGET", requests, *ids))
        return [
            accepted_event(
                as_bytes(value),
                name=name,
                id_=id,
                event_id=event_id.decode(),
                position=as_bytes(position).decode(),
            )
            for event_id, value, position in zip(ids, as_list(values), line[1::2], strict=True)
            if value is not None  # else it has an outcome by now
        ]

    async def settle_event(self, event: AcceptedEvent, outcome: EventOutcome) -> EventOutcome:
        """Give an accepted event an outcome without sending it to its machine; its first outcome.

        What was stored of a damaged one is kept in a key of its own.
        """
        request = event.request
        if event.damage is not None:
            damaged = self._layout.damaged(self._layout.machine(request.id, request.config))
            await self._ask(damaged, (b"HSET", damaged, request.event.event_id.encode(), event.damage))
        return await self._settle(
            request.event.event_id,
            request.config,
            outcome,
            milliseconds_of(self._options.outcome_ttl),
            told=self._options.notify and bool(event.position),
        )

    async def _settle(
        self, event_id: str, name: str, outcome: EventOutcome, milliseconds: int, *, told: bool
    ) -> EventOutcome:
        response = EventResponse(event_id=event_id, outcome=outcome)
        notification = response.SerializeToString() if told and outcome.code != EventOutcome.Ok else b""
        value = outcome.SerializeToString()

        async def work(_: int) -> bytes | None:
            return await self._writer.settle(event_id, name, value, milliseconds, notification)

        found = await self._attempt(event_id, work)
        return outcome if found is None else self._outcome(found, event_id, name)

    async def notifications(self, name: str | None = None) -> AsyncIterator[Notification]:
        """Outcomes of refused events that nobody was told of yet; in order within a configuration name.

        One that cannot be read is left out, and said in the log.
        """
        names = [name] if name is not None else [each async for each in self._names()]
        for each in names:
            key = self._layout.notifications(each)
            after = b"-inf"
            while True:
                window = (after, b"+inf", b"WITHSCORES", b"LIMIT", b"0", b"%d" % _PAGE)
                (reply,) = await self._ask(key, (b"ZRANGEBYSCORE", key, *window))
                page = as_list(reply)
                for value, position in zip(page[::2], page[1::2], strict=True):
                    after = b"(" + as_bytes(position)
                    try:
                        response = parsed(EventResponse, value, key)
                    except InvalidDataError as error:
                        self._logger.error("%s", error)  # noqa: TRY400  no defect of ours
                        continue
                    yield Notification(each, as_bytes(position).decode(), response)
                if len(page) < 2 * _PAGE:
                    break

    async def remove_notification(self, notification: Notification) -> None:
        """Forget an outcome that somebody was told of; a second call does nothing."""
        key = self._layout.notifications(notification.config)
        position = notification.position.encode()
        await self._ask(key, (b"ZREMRANGEBYSCORE", key, position, position))

    async def _names(self) -> AsyncIterator[str]:
        """Names that have anything beyond the layout."""
        seen: set[str] = set()
        async for page in self._members(self._layout.names):
            for name in page:
                if name not in seen:
                    seen.add(name)
                    yield name

    def _outcome(self, value: bytes, event_id: str, name: str) -> EventOutcome:
        return parsed(EventOutcome, value, self._layout.outcome(event_id, name))
