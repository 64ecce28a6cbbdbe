"""Machines on Redis: read, worked out in memory, and written if they are still what they were."""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from hsm.engine.clock import from_nanos
from hsm.fsm._processing import Lanes
from hsm.fsm.domain import ConfiguredStateMachine, check_request, update_event
from hsm.fsm.errors import (
    ConfigurationNotFoundError,
    InvalidDataError,
    NotFoundError,
    RevisionMismatchError,
    TooManyAttemptsError,
)
from hsm.fsm.keys import CONFIG_ID_SEPARATOR
from hsm.fsm.redis._base import valid_id
from hsm.fsm.redis._changes import Action, Change, Seen
from hsm.fsm.redis._configurations import Configurations
from hsm.fsm.redis._deciding import Sent, decide, machine_of, revision_of, trim
from hsm.fsm.redis._replies import as_bytes
from hsm.fsm.redis.options import RedisStoreOptions
from hsm.fsm.store import AcceptedEvent
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
)

__all__ = ["Machines"]

# Each means that somebody else has got on, and so is no failure; but nobody waits for ever.
_CONFLICTS: Final = 100


class Machines(Configurations):
    """The operations of `FSMStore`."""

    def __init__(
        self,
        address: str,
        *,
        is_cluster: bool,
        db: int,
        timeout: timedelta,
        max_retries: int,
        namespace: str,
        options: RedisStoreOptions,
    ) -> None:
        super().__init__(
            address,
            is_cluster=is_cluster,
            db=db,
            timeout=timeout,
            max_retries=max_retries,
            namespace=namespace,
            options=options,
        )
        self._lanes = Lanes(self._process, options.batch)
        self._turns: defaultdict[tuple[str, str], list[asyncio.Future[None]]] = defaultdict(list)

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
            configuration = await self._config(found.config_id)

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

        async with self._turn(id, name):
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

        async with self._turn(id, name):
            return await self._attempt(key, work)

    async def get_all_machines(
        self, name: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """Ids of all machines of a configuration name, sorted: at most `limit`, those that follow `after`."""
        found: set[str] = set()
        for state in sorted(await self._states_of(name)):
            found |= await self._some_in_state(name, state, after, limit)
            if limit is not None:
                found = set(heapq.nsmallest(limit, found))
        return sorted(found)

    async def get_all_in_state(
        self, name: str, state: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """Ids of the machines in a state, sorted: at most `limit`, those that follow `after`.

        The set is read by pages, from its beginning for each call, for Redis keeps it in no order.
        """
        return sorted(await self._some_in_state(name, state, after, limit))

    async def _some_in_state(self, name: str, state: str, after: str, limit: int | None) -> set[str]:
        found: set[str] = set()
        key = self._layout.state(name, state)
        async for page in self._members(key):
            ids = [each for each in page if each > after and each not in found]

            async def work(_: int, ids: Sequence[str] = ids) -> Sequence[str]:
                return await self._writer.in_state(name, state, ids)

            found.update(await self._attempt(key.decode(), work))
            if limit is not None and len(found) > limit:
                found = set(heapq.nsmallest(limit, found))
        return found

    async def update_state(self, name: str, id: str, old_state: str, new_state: str) -> None:  # noqa: A002
        """Bring the index of one machine into line with the machine itself; see `FSMStore.update_state`.

        Raises:
            NotFoundError: `new_state` is given, and there is no such machine.
            InvalidDataError: the index would be wrong; nothing was written.
        """
        machine = self._layout.machine(id, name).decode()

        async def work(_: int) -> None:
            found = machine_of(await self._writer.look(id, name, ()), machine)
            state = found.state if found is not None else ""
            if new_state and found is None:
                raise NotFoundError(machine)
            if state and ((new_state and state != new_state) or (old_state == state and not new_state)):
                raise InvalidDataError(f"machine {machine} is in {state!r}: the index would be wrong")
            await self._writer.align(id, name, [each for each in (old_state, new_state) if each])

        async with self._turn(id, name):
            await self._attempt(machine, work)

    async def repair(self, name: str) -> int:
        """Bring the state sets of a configuration name into line with its machines; how much was wrong.

        For data of programs that change the sets and the machines one after the other, and for a cluster
        after a crash. It goes through all keys of the database.
        """
        states = sorted(await self._states_of(name))
        ids = {each async for each in self._all_machines(name)}
        for state in states:
            async for page in self._members(self._layout.state(name, state)):
                ids.update(page)
        wrong = 0
        for id_ in sorted(ids):

            async def work(_: int, id_: str = id_) -> int:
                found = machine_of(
                    await self._writer.look(id_, name, ()), self._layout.machine(id_, name).decode()
                )
                own = [found.state] if found is not None and found.state not in states else []
                return await self._writer.align(id_, name, [*states, *own])

            async with self._turn(id_, name):
                wrong += await self._attempt(id_, work)
        return wrong

    async def _all_machines(self, name: str) -> AsyncIterator[str]:
        pattern = self._layout.machine_pattern(name)
        async for key in self._keys(pattern):
            id_ = self._layout.machine_of(key, name)
            if id_ is not None:
                yield id_.decode()

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
        # The futures survive a caller who gives up: what was begun is carried out.
        return [await asyncio.shield(future) for future in self._lanes.submit(events)]

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
                moves = await self._moves(name, id, machine)
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

        async with self._turn(id, name):
            outcomes = await self._attempt(key, work)
        return [outcomes[each.event.event_id] for each in sent]

    async def _moves(
        self,
        name: str,
        id: str,  # noqa: A002  the field's word
        machine: FiniteStateMachine | None,
    ) -> Configuration | NotFoundError:
        """What a machine follows, or why events to it lead nowhere."""
        try:
            if machine is not None:
                return await self._config(machine.config_id)
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

    @asynccontextmanager
    async def _turn(self, id: str, name: str) -> AsyncGenerator[None]:  # noqa: A002  the field's word
        """One of ours at a time: those of one process have no reason to get in each other's way."""
        line = self._turns[name, id]
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            if line[0] is not turn:
                await turn
            yield
        finally:
            first = line[0] is turn
            line.remove(turn)
            if not line:
                del self._turns[name, id]
            elif first and not line[0].done():
                line[0].set_result(None)

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
