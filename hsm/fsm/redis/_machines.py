"""Machines on Redis: read, worked out in memory, and written if they are still what they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hsm.engine.clock import from_nanos
from hsm.fsm._lanes import Lanes
from hsm.fsm._moves import Moves
from hsm.fsm.domain import ConfiguredStateMachine, check_request, update_event
from hsm.fsm.errors import (
    ConfigurationNotFoundError,
    InvalidDataError,
    NotFoundError,
    RevisionMismatchError,
    TooManyAttemptsError,
)
from hsm.fsm.keys import CONFIG_ID_SEPARATOR
from hsm.fsm.redis._base import Settings, valid_id
from hsm.fsm.redis._changes import Action, Change, Seen
from hsm.fsm.redis._deciding import Sent, decide, machine_of, revision_of, trim
from hsm.fsm.redis._index import Index
from hsm.fsm.redis._replies import as_bytes
from hsm.fsm.store import AcceptedEvent
from persistence.proto.statemachine_pb2 import (
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
)

__all__ = ["Machines"]

# Each means that somebody else has got on, and so is no failure; but nobody waits for ever.
_CONFLICTS: Final = 100


class Machines(Index):
    """The operations of `FSMStore` that read one machine, or write it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lanes = Lanes(self._process, settings.options.batch)

    async def get_state_machine(self, id: str, name: str) -> FiniteStateMachine:  # noqa: A002  the field's word
        """A machine with its history and revision.

        Raises:
            NotFoundError: there is none.
        """
        key = self._layout.machine(id, name)
        (value,) = await self._ask(key, (b"GET", key))
        machine = machine_of(Seen(None if value is None else as_bytes(value), {}), key.decode())
        if machine is None:
            raise NotFoundError(key.decode())
        machine.revision = revision_of(machine)
        return machine

    async def put_state_machine(
        self,
        id: str,  # noqa: A002  the field's word
        machine: FiniteStateMachine,
        *,
        expected_revision: int | None = None,
    ) -> int:
        """Create a machine, or replace its configuration, state and history; its new revision.

        Raises:
            RevisionMismatchError: it is at another revision.
            InvalidDataError: the machine names no configuration or no state.
            TooManyAttemptsError: without an expected revision: others wrote it each time.
        """
        name, _, version = machine.config_id.partition(CONFIG_ID_SEPARATOR)
        if not name or not version or not machine.state:
            raise InvalidDataError(
                f"machine {id!r} of {machine.config_id!r} has no configuration or no state"
            )
        valid_id(id, "id of a machine")
        valid_id(machine.state, "state of a machine")
        new = FiniteStateMachine()
        new.CopyFrom(machine)
        trim(new, self._options.history_cap)

        def replace(old: FiniteStateMachine | None) -> FiniteStateMachine:  # noqa: ARG001  all of it
            return new

        return (await self._rewrite(id, name, expected_revision, replace)).revision

    async def reset_state_machine(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        *,
        expected_revision: int | None = None,
    ) -> FiniteStateMachine:
        """Put a machine back into the starting state of its configuration, without history; the new one.

        Raises:
            NotFoundError: there is no such machine, or (`ConfigurationNotFoundError`) no such configuration.
            RevisionMismatchError, TooManyAttemptsError: as `put_state_machine`.
        """
        # Which configuration it follows may change until it is written.
        for _ in range(_CONFLICTS):
            found = await self.get_state_machine(id, name)
            configuration = (await self._moves(found.config_id)).configuration

            def reset(old: FiniteStateMachine | None) -> FiniteStateMachine | None:
                if old is None:
                    raise NotFoundError(self._layout.machine(id, name).decode())
                if old.config_id != found.config_id:  # noqa: B023  called before the next turn
                    return None
                ConfiguredStateMachine(configuration, old).reset()  # noqa: B023  as above
                return old

            try:
                return await self._rewrite(id, name, expected_revision, reset)
            except _ConfigurationChangedError:
                continue
        raise self._too_many(id, name)

    async def delete_state_machine(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        *,
        expected_revision: int | None = None,
    ) -> None:
        """Delete a machine and its history, and take it out of the index. Its events stay.

        Raises:
            NotFoundError: there is none.
            RevisionMismatchError, TooManyAttemptsError: as `put_state_machine`.
        """
        key = self._layout.machine(id, name).decode()

        async def work(number: int) -> None:
            seen: Seen | None = await self._writer.look(id, name, ())
            for _ in range(_CONFLICTS):
                if seen is None:
                    return
                old = machine_of(seen, key)
                if old is None:
                    # Of a second attempt, the first may have deleted it.
                    if number:
                        return
                    raise NotFoundError(key)
                _check_revision(key, old, expected_revision)
                seen = await self._writer.write(Change(id, name, seen, Action.DELETE, leave=old.state))
            raise self._too_many(id, name)

        async with self._turns.turn(name, id):
            await self._attempt(key, work)

    async def _rewrite(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        expected_revision: int | None,
        make: Callable[[FiniteStateMachine | None], FiniteStateMachine | None],
    ) -> FiniteStateMachine:
        """Replace a machine by what is made of it; the new one."""
        key = self._layout.machine(id, name).decode()
        written: list[bytes] = []

        async def work(number: int) -> FiniteStateMachine:
            seen = await self._writer.look(id, name, ())
            for _ in range(_CONFLICTS):
                if number and written and seen.machine == written[-1]:
                    return FiniteStateMachine.FromString(written[-1])  # by the attempt before
                old = machine_of(seen, key)
                _check_revision(key, old, expected_revision)
                leave, revision = (old.state, revision_of(old)) if old is not None else ("", 0)
                new = make(old)
                if new is None:
                    raise _ConfigurationChangedError
                new.revision = revision + 1
                written.append(new.SerializeToString())
                change = Change(id, name, seen, Action.SET, written[-1], leave=leave, enter=new.state)
                found = await self._writer.write(change)
                if found is None:
                    return FiniteStateMachine.FromString(written[-1])
                seen = found
            raise self._too_many(id, name)

        async with self._turns.turn(name, id):
            return await self._attempt(key, work)

    async def tx_process_event(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        event: Event,
        *,
        expected_revision: int | None = None,
    ) -> EventOutcome:
        """Send an event to a machine; what became of it, now or when it first came.

        Raises:
            InvalidDataError: the event has no id.
            EventError: the machine, the configuration or the event has no name.
            TooManyAttemptsError: others wrote the machine each time.
        """
        self._layout.machine(id, name)  # what cannot be a key cannot be in a request either
        request = EventRequest(id=id, config=name, event=event, expected_revision=expected_revision)
        check_request(request)
        if not event.event_id:
            raise InvalidDataError(f"an event to machine {id!r} of {name!r} has no id")
        update_event(request.event, now=from_nanos(self._options.clock.time_ns()))
        (outcome,) = await self.process_events([AcceptedEvent(request)])
        return outcome

    async def process_events(self, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        """As `tx_process_event` for several events to **one** machine, in their order, in few transactions.

        What comes for a machine while a transaction of its is under way goes into the next one.

        Raises:
            InvalidDataError: they are to several machines, or one of them has no id.
            EventError, TooManyAttemptsError: as `tx_process_event`.
        """
        if not events:
            return []
        places = {(event.request.id, event.request.config) for event in events}
        if len(places) > 1:
            raise InvalidDataError(
                f"events that are processed together are for one machine, and not for {sorted(places)}"
            )
        ((id_, name),) = places
        for each in events:
            check_request(each.request)
            if not each.request.event.event_id:
                raise InvalidDataError(f"an event to machine {id_!r} of {name!r} has no id")
        return await self._lanes.carry_out(name, id_, events)

    async def _process(
        self,
        name: str,
        id: str,  # noqa: A002  the field's word
        events: Sequence[AcceptedEvent],
    ) -> Sequence[EventOutcome]:
        sent = [_sent(each) for each in events]
        key = self._layout.machine(id, name).decode()
        ids = list(dict.fromkeys(each.event.event_id for each in sent))

        async def work(_: int) -> Mapping[str, EventOutcome]:
            seen = await self._writer.look(id, name, ids)
            for _ in range(_CONFLICTS):
                # A first outcome may come between the events of a batch, so that each try has fewer of them.
                known = {
                    event_id: self._outcome(value, event_id, name)
                    for event_id, value in seen.outcomes.items()
                }
                left = [each for each in sent if each.event.event_id not in known]
                if not left:
                    await self._forget(sent, known, name)
                    return known
                machine = machine_of(seen, key)
                moves = await self._moves_of(name, id, machine)
                change, outcomes = decide(
                    id,
                    name,
                    seen,
                    moves,
                    left,
                    history_cap=self._options.history_cap,
                    notify=self._options.notify,
                    notify_all=self._options.notify_all,
                )
                found = await self._writer.write(change)
                if found is None:
                    await self._forget(sent, known, name)
                    return known | outcomes
                seen = Seen(found.machine, {**seen.outcomes, **found.outcomes}, found.turn)
            raise self._too_many(id, name)

        async with self._turns.turn(name, id):
            outcomes = await self._attempt(key, work)
        return [outcomes[each.event.event_id] for each in sent]

    async def _moves_of(
        self,
        name: str,
        id: str,  # noqa: A002  the field's word
        machine: FiniteStateMachine | None,
    ) -> Moves | NotFoundError:
        """What a machine follows, or why events to it lead nowhere."""
        try:
            if machine is not None:
                return await self._moves(machine.config_id)
        except ConfigurationNotFoundError as error:
            return error
        if not await self._knows(name):
            return ConfigurationNotFoundError(name)
        return NotFoundError(id)

    async def _forget(self, sent: Sequence[Sent], known: Mapping[str, EventOutcome], name: str) -> None:
        """Take accepted events that had outcomes already off those that wait."""
        ids = [each.event.event_id for each in sent if each.accepted and each.event.event_id in known]
        if ids:
            await self._writer.forget(ids, name)

    def _outcome(self, value: bytes, event_id: str, name: str) -> EventOutcome:
        raise NotImplementedError

    def _too_many(self, id: str, name: str) -> TooManyAttemptsError:  # noqa: A002  the field's word
        return TooManyAttemptsError(
            f"retries exceeded: machine {id!r} of {name!r} was written by others {_CONFLICTS} times"
        )


class _ConfigurationChangedError(Exception):
    """A machine follows another configuration by now."""


def _sent(event: AcceptedEvent) -> Sent:
    request = event.request
    expected = request.expected_revision if request.HasField("expected_revision") else None
    return Sent(request.event, expected, bool(event.position))


def _check_revision(key: str, machine: FiniteStateMachine | None, expected: int | None) -> None:
    actual = revision_of(machine)
    if expected is not None and expected != actual:
        raise RevisionMismatchError(key, expected=expected, actual=actual)
