"""Stores of configurations, machines and events: what any of them does, whatever lies beneath.

Every operation names the configuration by its name, without a version, unless it says otherwise. Each may
raise `InvalidDataError` (what it is given, or finds, is not what it should be), `StoreTimeoutError` and
`GenericStoreError` besides what it lists.

What is promised:

* State, index, history, event and outcome change together or not at all. Where a database cannot do that,
  the machine's own row decides, and its implementation says how the rest follows.
* An event is known by the name of its configuration and its id. Its first outcome is its only one: an event
  that comes again is answered with it, and changes nothing.
* A machine's revision is 1 when it is first written and grows by one with every change.
* An event that is known and has no outcome is **pending**; one that is not known is not found.

Semantics: go-statemachine (v0.14.0) `storage`, with what is said above.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import attrs

from hsm.fsm.keys import NEVER_EXPIRE
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventOutcome,
    EventRequest,
    EventResponse,
    FiniteStateMachine,
)

__all__ = [
    "Acceptance",
    "AcceptedEvent",
    "ConfigStore",
    "EventStore",
    "FSMStore",
    "Notification",
    "StoreManager",
]


@attrs.frozen
class AcceptedEvent:
    """An event on its way to its machine.

    Attributes:
        request: the event, with id and time, and the machine that it is for. Of a damaged one only what its
            place tells: machine and id.
        position: where it stands in the order of acceptance, as the store writes it; "" if it was not
            accepted before.
        damage: what the store holds in place of the request, if that is none. Such an event can be settled,
            and not processed.
    """

    request: EventRequest
    position: str = ""
    damage: bytes | None = None


@attrs.frozen
class Acceptance:
    """What became of an attempt to accept an event: one of the two is None.

    Attributes:
        pending: it waits for its outcome now, or did already.
        outcome: it came before, and this became of it.
    """

    pending: AcceptedEvent | None = None
    outcome: EventOutcome | None = None


@attrs.frozen
class Notification:
    """An outcome that somebody is to be told of, kept until that is done.

    Attributes:
        config: name of the configuration.
        position: where it stands in the order of outcomes, as the store writes it.
        response: what to tell.
    """

    config: str
    position: str
    response: EventResponse


@runtime_checkable
class ConfigStore(Protocol):
    """Configurations, immutable once they are put."""

    async def get_config(self, config_id: str) -> Configuration:
        """The configuration `name:version`.

        Raises:
            ConfigurationNotFoundError: there is none.
        """
        ...

    async def put_config(self, configuration: Configuration) -> None:
        """Store a configuration for ever. The same content again is refused, too.

        Only its identity is checked here; `configuration.check_valid` checks the rest.

        Raises:
            AlreadyExistsError: there is one of this name and version; of several writers, one succeeds.
            MalformedConfigurationError: it has no name or no version, or they are no identifiers.
        """
        ...

    async def get_all_configs(self) -> Sequence[str]:
        """The names of all configurations, sorted."""
        ...

    async def get_all_versions(self, name: str) -> Sequence[str]:
        """The identities `name:version` of all versions of a name, sorted as text; none if it is unknown."""
        ...


@runtime_checkable
class FSMStore(Protocol):
    """Machines, found by id and by state."""

    async def get_state_machine(self, id: str, name: str) -> FiniteStateMachine:  # noqa: A002
        """A machine with its history and revision.

        Raises:
            NotFoundError: there is none.
        """
        ...

    async def put_state_machine(
        self,
        id: str,  # noqa: A002
        machine: FiniteStateMachine,
        *,
        expected_revision: int | None = None,
    ) -> int:
        """Create a machine, or replace its configuration, state and history; its new revision.

        The name of its configuration is what stands before the colon in `config_id`. Whether there is such a
        configuration is not checked. The index follows: the machine is in the set of its new state alone. The
        `revision` of the message that is given does not count.

        Args:
            id: of the machine.
            machine: what to write.
            expected_revision: write only if the machine is at this revision; 0: only if there is none. None
                writes in any case.

        Raises:
            RevisionMismatchError: it is at another revision.
            InvalidDataError: the machine names no configuration or no state.
            TooManyAttemptsError: without an expected revision: others wrote it each time.
        """
        ...

    async def reset_state_machine(
        self,
        id: str,  # noqa: A002
        name: str,
        *,
        expected_revision: int | None = None,
    ) -> FiniteStateMachine:
        """Put a machine back into the starting state of its configuration, without history; the new one.

        Raises:
            NotFoundError: there is no such machine, or (`ConfigurationNotFoundError`) no such configuration.
            RevisionMismatchError, TooManyAttemptsError: as `put_state_machine`.
        """
        ...

    async def delete_state_machine(
        self,
        id: str,  # noqa: A002
        name: str,
        *,
        expected_revision: int | None = None,
    ) -> None:
        """Delete a machine and its history, and take it out of the index. Its events stay.

        Raises:
            NotFoundError: there is none.
            RevisionMismatchError, TooManyAttemptsError: as `put_state_machine`.
        """
        ...

    async def get_all_machines(
        self, name: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """Ids of all machines of a configuration name, sorted: at most `limit`, those that follow `after`."""
        ...

    async def get_all_in_state(
        self, name: str, state: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """Ids of the machines in a state, sorted: at most `limit`, those that follow `after`."""
        ...

    async def update_state(self, name: str, id: str, old_state: str, new_state: str) -> None:  # noqa: A002
        """Bring the index of one machine into line with the machine itself.

        Everything here that writes a machine moves its index, so that there is nothing left to do. It is for
        machines that other programs have written: the id is taken out of the set of `old_state` unless the
        machine is in it, and put into the set of `new_state`. An empty name stands for no state.

        Raises:
            NotFoundError: `new_state` is given, and there is no such machine.
            InvalidDataError: the machine is in `old_state` and not in `new_state`, or in another than
                `new_state`: the index would be wrong. Nothing was written.
        """
        ...

    async def tx_process_event(
        self,
        id: str,  # noqa: A002
        name: str,
        event: Event,
        *,
        expected_revision: int | None = None,
    ) -> EventOutcome:
        """Send an event to a machine; what became of it, now or when it first came.

        In one transaction: machine, index, history (if the event moved the machine), event, outcome. An
        event that is refused gets its outcome, too: `EventNotAllowed`, `TransitionNotAllowed`, `FsmNotFound`,
        `ConfigurationNotFound` or `RevisionMismatch`. Whatever is raised means that it has none yet, as
        far as is known here; it can be sent again.

        Args:
            id: of the machine.
            name: of the configuration.
            event: with an id and a name; without a time it is given one.
            expected_revision: the outcome is `RevisionMismatch` if the machine is at another.

        Raises:
            InvalidDataError: the event has no id.
            EventError: the machine, the configuration or the event has no name.
            TooManyAttemptsError: others wrote the machine each time.
        """
        ...

    async def process_events(self, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        """As `tx_process_event` for several events to **one** machine, in their order, in few transactions.

        Accepted ones are pending no more afterwards. If it raises, some may have been processed; those are
        answered with their outcome when all are given again.
        """
        ...


@runtime_checkable
class EventStore(Protocol):
    """Events and what became of them."""

    async def get_event(self, event_id: str, name: str) -> Event:
        """An event as it was sent.

        Raises:
            NotFoundError: it is not known.
        """
        ...

    async def put_event(self, event: Event, name: str, ttl: timedelta = NEVER_EXPIRE) -> None:
        """Store an event without sending it to a machine; it counts as pending. The same again does nothing.

        Raises:
            AlreadyExistsError: there is another event of this id.
            InvalidDataError: it has no id.
        """
        ...

    async def add_event_outcome(
        self, event_id: str, name: str, outcome: EventOutcome, ttl: timedelta = NEVER_EXPIRE
    ) -> None:
        """Store the outcome of an event, which need not be known. The same again does nothing.

        Raises:
            AlreadyExistsError: it has another outcome; the first one stays.
        """
        ...

    async def get_outcome_for_event(self, event_id: str, name: str) -> EventOutcome:
        """What became of an event.

        Raises:
            OutcomePendingError: the event is known and has no outcome yet.
            NotFoundError: it is not known.
        """
        ...

    async def accept_event(self, request: EventRequest) -> Acceptance:
        """Store an event as pending, so that a crash does not lose it, or tell what became of it.

        The request names machine and configuration, and its event has an id and a name. An event that is
        pending already stays where it stands in the order. When this returns, it is durable.

        Raises:
            EventError, InvalidDataError: the request says too little; nothing was stored.
        """
        ...

    def pending_machines(self) -> AsyncIterator[tuple[str, str]]:
        """Configuration name and id of every machine with accepted events that have no outcome; no order."""
        ...

    async def pending_events(
        self,
        id: str,  # noqa: A002
        name: str,
        *,
        limit: int | None = None,
    ) -> Sequence[AcceptedEvent]:
        """Accepted events to a machine without an outcome, whoever accepted them, in order of acceptance.

        Damaged ones are among them, where they stand.
        """
        ...

    async def settle_event(self, event: AcceptedEvent, outcome: EventOutcome) -> EventOutcome:
        """Give an accepted event an outcome without sending it to its machine; its first outcome.

        It is pending no more. For events that no machine can process, so that they do not block others. What
        was stored of a damaged one is kept apart, for people to look at.
        """
        ...

    def notifications(self, name: str | None = None) -> AsyncIterator[Notification]:
        """Outcomes of refused events that nobody was told of yet; in order within a configuration name.

        Those of one name, or of all.

        They are kept only by a store that was made with `notify=True`, in the transaction of the outcome. One
        that cannot be read is left out, and said in the log.
        """
        ...

    async def remove_notification(self, notification: Notification) -> None:
        """Forget an outcome that somebody was told of; a second call does nothing."""
        ...


@runtime_checkable
class StoreManager(ConfigStore, FSMStore, EventStore, Protocol):
    """All of it, with what concerns the store as a whole. `async with` opens and closes it."""

    def set_log_level(self, level: int) -> None:
        """Set the level (of `logging`) of what this store logs."""
        ...

    def set_timeout(self, duration: timedelta) -> None:
        """How long one operation may take; zero: as long as it likes.

        Raises:
            InvalidDataError: it is negative.
        """
        ...

    def get_timeout(self) -> timedelta:
        """How long one operation may take."""
        ...

    async def health(self) -> None:
        """Return if the database answers within the time-out.

        Raises:
            FSMStoreError: it does not.
        """
        ...

    async def sweep(self) -> None:
        """Finish what processes that have died had begun, and what nobody else would finish."""
        ...

    async def aclose(self) -> None:
        """Finish what was begun, within the time-out, and release everything; a second call does nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
