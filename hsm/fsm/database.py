"""A `StoreManager` on the storage contract: state, index, history, event and outcome in one transaction."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import attrs

import persistence
from hsm.engine.clock import Clock, SystemClock, from_nanos
from hsm.fsm._configurations import Configurations
from hsm.fsm._events import Events
from hsm.fsm._guard import Guard
from hsm.fsm._lanes import Lanes
from hsm.fsm._lifetimes import ttl_of_event
from hsm.fsm._machines import Machines
from hsm.fsm._processing import Processing, Recorder, events_in_transaction
from hsm.fsm._turns import Turns
from hsm.fsm._writing import Writing
from hsm.fsm.domain import check_request, update_event
from hsm.fsm.errors import InvalidDataError
from hsm.fsm.keys import DEFAULT_NAMESPACE, NEVER_EXPIRE
from hsm.fsm.store import Acceptance, AcceptedEvent, Notification
from persistence.features import require
from persistence.options import MAX_TTL_SECONDS
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
)
from persistence.store import EngineStore, Feature

__all__ = ["DatabaseOptions", "DatabaseStore"]

_SECOND: Final = timedelta(seconds=1)


@attrs.frozen(kw_only=True)
class DatabaseOptions:
    """How a store of machines works on a database.

    Attributes:
        timeout: how long one operation may take; zero: as long as it likes. Many share one commit.
        max_attempts: of an operation that others were faster than.
        event_ttl: how long an event is kept after it has its outcome, in whole seconds, rounded up; no longer
            than the outcome.
        outcome_ttl: how long an outcome is kept, and an event that comes again is answered with it.
        history_cap: events that the history of a machine keeps; None keeps all.
        notify: whether outcomes of refused events are kept until somebody was told of them.
        notify_all: whether those of events that succeeded are kept so, too.
        batch: events to one machine in one transaction.
        cached_machines: machines remembered, so that an event to one needs no read.
        clock: where time comes from.
    """

    timeout: timedelta = timedelta(seconds=10)
    max_attempts: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    event_ttl: timedelta = NEVER_EXPIRE
    outcome_ttl: timedelta = NEVER_EXPIRE
    history_cap: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    notify: bool = False
    notify_all: bool = False
    batch: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    cached_machines: int = attrs.field(default=10_000, validator=attrs.validators.ge(0))
    clock: Clock = attrs.field(factory=SystemClock)


class DatabaseStore:
    """Configurations, machines and events of a namespace, in any database with ETAG, TRANSACTIONAL and SCAN.

    Machines of one configuration name share a partition with their index, history, events and outcomes, so
    that all of them change together. Any number of processes may use one database. Within a process, what
    comes for one machine at the same time shares a transaction, and transactions share commits.

    `async with` opens and closes it; a store that is given open stays open, one that is named by a URL is
    closed.
    """

    def __init__(
        self,
        store: EngineStore | str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        options: DatabaseOptions | None = None,
    ) -> None:
        """Use an open store, or the one of a URL as `persistence.connect` takes it.

        Raises:
            FeatureMissingError: the database cannot do what is needed.
            UnknownSchemeError, InvalidRequestError: as `persistence.connect`.
        """
        self._options = options or DatabaseOptions()
        self._stack = AsyncExitStack()
        self._owned = isinstance(store, str)
        connected = persistence.connect(store) if isinstance(store, str) else store
        self._store = require(connected, EngineStore)
        self._namespace = namespace
        self._guard = Guard(self._options.timeout)
        self._timeout = self._options.timeout
        self._clock = self._options.clock
        self._last_nanos = 0
        self._logger = logging.getLogger(f"{__name__}.{namespace}")
        event_metadata = self._metadata(ttl_of_event(self._options.event_ttl, self._options.outcome_ttl))
        outcome_metadata = self._metadata(self._options.outcome_ttl)
        recorder = Recorder(
            event_metadata,
            outcome_metadata,
            self._options.notify,
            self._options.notify_all,
            self._next_nanos,
        )
        machines = Machines(self._store, self._options.cached_machines)
        self._configurations = Configurations(self._store, namespace)
        turns = Turns()
        self._writing = Writing(self._store, namespace, machines, self._configurations, turns, self._options)
        self._events = Events(self._store, namespace, self._configurations, recorder)
        processing = Processing(
            self._store,
            namespace,
            machines,
            self._configurations,
            recorder,
            turns,
            history_cap=self._options.history_cap,
            max_attempts=self._options.max_attempts,
        )
        most = events_in_transaction(self._store.limits.operations)
        self._lanes = Lanes(processing.process, min(self._options.batch, most))

    def __repr__(self) -> str:
        return f"<DatabaseStore of namespace {self._namespace!r} on {self._store!r}>"

    async def __aenter__(self) -> Self:
        """Open the database, if this store was made with a URL.

        Raises:
            GenericStoreError: it cannot be opened.
        """
        if self._owned:
            with Guard(NEVER_EXPIRE).block("the database"):
                await self._stack.enter_async_context(self._store)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `StoreManager`."""
        await self._lanes.aclose(self._timeout)
        await self._stack.aclose()

    def set_log_level(self, level: int) -> None:
        """See `StoreManager`. It concerns all stores of this namespace in the process."""
        self._logger.setLevel(level)

    def set_timeout(self, duration: timedelta) -> None:
        """See `StoreManager`."""
        if duration < timedelta():
            raise InvalidDataError(f"time-out {duration} is negative")
        self._guard = Guard(duration)
        self._timeout = duration

    def get_timeout(self) -> timedelta:
        """See `StoreManager`."""
        return self._timeout

    async def health(self) -> None:
        """See `StoreManager`."""
        with self._guard.block("health"):
            await self._store.ping()

    async def get_config(self, config_id: str) -> Configuration:
        """See `ConfigStore`."""
        with self._guard.block(f"configuration {config_id!r}"):
            configuration = Configuration()
            configuration.CopyFrom((await self._configurations.moves(config_id)).configuration)
            return configuration

    async def put_config(self, configuration: Configuration) -> None:
        """See `ConfigStore`."""
        with self._guard.block(f"configuration {configuration.name!r}"):
            await self._configurations.put(configuration)
        self._logger.debug("configuration %s:%s is stored", configuration.name, configuration.version)

    async def get_all_configs(self) -> Sequence[str]:
        """See `ConfigStore`."""
        with self._guard.block("configurations"):
            return await self._configurations.names()

    async def get_all_versions(self, name: str) -> Sequence[str]:
        """See `ConfigStore`."""
        with self._guard.block(f"versions of {name!r}"):
            return await self._configurations.versions(name)

    async def get_state_machine(self, id: str, name: str) -> FiniteStateMachine:  # noqa: A002  see `FSMStore`
        """See `FSMStore`."""
        with self._guard.block(f"machine {id!r} of {name!r}"):
            return await self._writing.get(id, name)

    async def put_state_machine(
        self,
        id: str,  # noqa: A002
        machine: FiniteStateMachine,
        *,
        expected_revision: int | None = None,
    ) -> int:
        """See `FSMStore`."""
        with self._guard.block(f"machine {id!r} of {machine.config_id!r}"):
            return await self._writing.put(id, machine, expected_revision)

    async def reset_state_machine(
        self,
        id: str,  # noqa: A002
        name: str,
        *,
        expected_revision: int | None = None,
    ) -> FiniteStateMachine:
        """See `FSMStore`."""
        with self._guard.block(f"machine {id!r} of {name!r}"):
            return await self._writing.reset(id, name, expected_revision)

    async def delete_state_machine(
        self,
        id: str,  # noqa: A002
        name: str,
        *,
        expected_revision: int | None = None,
    ) -> None:
        """See `FSMStore`."""
        with self._guard.block(f"machine {id!r} of {name!r}"):
            await self._writing.delete(id, name, expected_revision)

    async def get_all_machines(
        self, name: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """See `FSMStore`."""
        with self._guard.block(f"machines of {name!r}"):
            return await self._writing.ids(name, None, after, limit)

    async def get_all_in_state(
        self, name: str, state: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """See `FSMStore`."""
        with self._guard.block(f"machines of {name!r} in {state!r}"):
            return await self._writing.ids(name, state, after, limit)

    async def update_state(self, name: str, id: str, old_state: str, new_state: str) -> None:  # noqa: A002
        """See `FSMStore`."""
        with self._guard.block(f"machine {id!r} of {name!r}"):
            await self._writing.update_state(name, id, old_state, new_state)

    async def tx_process_event(
        self,
        id: str,  # noqa: A002
        name: str,
        event: Event,
        *,
        expected_revision: int | None = None,
    ) -> EventOutcome:
        """See `FSMStore`."""
        request = EventRequest(event=event, config=name, id=id, expected_revision=expected_revision)
        self._check(request)
        if not event.HasField("timestamp"):
            update_event(request.event, now=from_nanos(self._clock.time_ns()))
        (outcome,) = await self._carry_out(name, id, (AcceptedEvent(request),))
        return outcome

    async def process_events(self, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        """See `FSMStore`."""
        if not events:
            return ()
        for each in events:
            self._check(each.request)
        first = events[0].request
        if any((each.request.config, each.request.id) != (first.config, first.id) for each in events):
            raise InvalidDataError("events that are processed together are for one machine")
        return await self._carry_out(first.config, first.id, events)

    async def _carry_out(
        self, name: str, id_: str, events: Sequence[AcceptedEvent]
    ) -> Sequence[EventOutcome]:
        with self._guard.block(f"events to machine {id_!r} of {name!r}"):
            return await self._lanes.carry_out(name, id_, events)

    async def get_event(self, event_id: str, name: str) -> Event:
        """See `EventStore`."""
        with self._guard.block(f"event {event_id!r} of {name!r}"):
            return await self._events.get(event_id, name)

    async def put_event(self, event: Event, name: str, ttl: timedelta = NEVER_EXPIRE) -> None:
        """See `EventStore`."""
        self._check_event_id(event)
        with self._guard.block(f"event {event.event_id!r} of {name!r}"):
            await self._events.put(event, name, self._metadata(ttl))

    async def add_event_outcome(
        self, event_id: str, name: str, outcome: EventOutcome, ttl: timedelta = NEVER_EXPIRE
    ) -> None:
        """See `EventStore`."""
        with self._guard.block(f"outcome of event {event_id!r} of {name!r}"):
            await self._events.add_outcome(event_id, name, outcome, self._metadata(ttl))

    async def get_outcome_for_event(self, event_id: str, name: str) -> EventOutcome:
        """See `EventStore`."""
        with self._guard.block(f"outcome of event {event_id!r} of {name!r}"):
            return await self._events.outcome(event_id, name)

    async def accept_event(self, request: EventRequest) -> Acceptance:
        """See `EventStore`."""
        self._check(request)
        with self._guard.block(f"event {request.event.event_id!r} of {request.config!r}"):
            return await self._events.accept(request, self._next_nanos())

    async def pending_machines(self) -> AsyncIterator[tuple[str, str]]:
        """See `EventStore`."""
        for name in await self.get_all_configs():
            after = ""
            while True:
                with self._guard.block(f"pending events of {name!r}"):
                    id_ = await self._events.next_pending_machine(name, after)
                if id_ is None:
                    break
                yield name, id_
                after = id_

    async def pending_events(
        self,
        id: str,  # noqa: A002
        name: str,
        *,
        limit: int | None = None,
    ) -> Sequence[AcceptedEvent]:
        """See `EventStore`."""
        with self._guard.block(f"pending events to machine {id!r} of {name!r}"):
            return await self._events.pending(id, name, limit)

    async def settle_event(self, event: AcceptedEvent, outcome: EventOutcome) -> EventOutcome:
        """See `EventStore`."""
        with self._guard.block(f"event {event.request.event.event_id!r} of {event.request.config!r}"):
            return await self._events.settle(event, outcome)

    async def notifications(self, name: str | None = None) -> AsyncIterator[Notification]:
        """See `EventStore`."""
        for each in [name] if name is not None else await self.get_all_configs():
            more, after = True, ""
            while more:
                with self._guard.block(f"notifications of {each!r}"):
                    page, after = await self._events.notifications(each, after)
                for notification in page:
                    yield notification
                more = bool(after)

    async def remove_notification(self, notification: Notification) -> None:
        """See `EventStore`."""
        with self._guard.block(f"notification of {notification.config!r}"):
            await self._events.remove_notification(notification)

    async def sweep(self) -> None:
        """See `StoreManager`: deletes the histories of deleted machines."""
        for name in await self.get_all_configs():
            with self._guard.block(f"deleted machines of {name!r}"):
                await self._writing.sweep(name)

    def _next_nanos(self) -> int:
        """The time, later than any that was told before."""
        self._last_nanos = max(self._clock.time_ns(), self._last_nanos + 1)
        return self._last_nanos

    def _metadata(self, ttl: timedelta) -> dict[str, str]:
        """What tells the database of a time to live; none for one that does not end."""
        if ttl == NEVER_EXPIRE:
            return {}
        seconds = -(-ttl // _SECOND)
        if not 0 < seconds <= MAX_TTL_SECONDS:
            raise InvalidDataError(f"time to live {ttl} is not between one and {MAX_TTL_SECONDS} seconds")
        if Feature.TTL not in self._store.features:
            raise InvalidDataError(f"{self._store!r} cannot let rows expire")
        return {"ttlInSeconds": str(seconds)}

    def _check(self, request: EventRequest) -> None:
        check_request(request)
        self._check_event_id(request.event)

    def _check_event_id(self, event: Event) -> None:
        if not event.event_id:
            raise InvalidDataError("the event has no id")
