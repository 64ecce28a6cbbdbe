"""A cluster: the machine's own key decides, and what follows lies in other slots and is written afterwards.

A change takes five exchanges: the machine is read, after what its journal says is still to follow; it is put
into the set of its next state, for the turn that is to come; the decision is made, if the machine is still
what it was; outcomes are written, and the machine leaves the set of its last state; the journal forgets.
After a crash between any two of them the next one who writes to the machine goes on from there.

The sets stay right because every member has the turn for which it came: nobody takes a machine out who knows
of an earlier turn only. Outcomes stay the first ones because they are looked for after the machine was read:
what was decided before is in the journal or has an outcome, and what is decided afterwards changes the turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from hsm.fsm.redis._changes import Action, Change, Pending, Seen
from hsm.fsm.redis._connections import Connections
from hsm.fsm.redis._deciding import machine_of
from hsm.fsm.redis._journal import Journal, arguments_of, journal_of, read_journal
from hsm.fsm.redis._layout import Layout
from hsm.fsm.redis._lifetimes import expiry
from hsm.fsm.redis._replies import as_bytes, as_list, as_texts
from hsm.fsm.redis._scripts import ACCEPT, DECIDE, FINISH, IDLE, MEMBER, NOTIFY, digest
from persistence.stores.redis.dispatch import Request

__all__ = ["ClusterWriter"]


class ClusterWriter:
    """Writes to a cluster."""

    def __init__(
        self, connections: Connections, layout: Layout, event_milliseconds: int, outcome_milliseconds: int
    ) -> None:
        self._connections = connections
        self._layout = layout
        self._event_milliseconds = event_milliseconds
        self._outcome_milliseconds = outcome_milliseconds

    async def look(self, id: str, name: str, event_ids: Sequence[str]) -> Seen:  # noqa: A002  the field's word
        """A machine and the outcomes of events, after everything has followed that was decided before."""
        layout = self._layout
        machine = layout.machine(id, name)
        while True:
            # The journal first: the machine is then of its turn, or of a later one.
            journal_reply, value, *outcomes = await self._ask(
                (machine, (b"HGETALL", layout.journal(machine))),
                (machine, (b"GET", machine)),
                *((key, (b"GET", key)) for key in (layout.outcome(each, name) for each in event_ids)),
            )
            journal = read_journal(journal_reply)
            if not journal.open:
                break
            await self._follow(id, name, journal)
        found = {
            event_id: as_bytes(outcome)
            for event_id, outcome in zip(event_ids, outcomes, strict=True)
            if outcome is not None
        }
        return Seen(None if value is None else as_bytes(value), found, journal.turn)

    async def write(self, change: Change) -> Seen | None:
        """Write a change; None if that is done, else what stood against it, and nothing was written."""
        layout, name = self._layout, change.name
        machine = layout.machine(change.id, name)
        event_ids = [event.event_id for event in change.events]
        journal = journal_of(change, self._outcome_milliseconds)
        entered = change.enter if change.action is Action.SET else ""
        if not await self._prepare(change, entered, journal.turn):
            decided = await self._decide(change, machine, journal)
            if decided:
                await self._follow(change.id, name, journal)
                return None
        found = await self.look(change.id, name, event_ids)
        if entered and not self._is_in(found, machine, entered):
            await self._member("remove", change.id, name, entered, found.turn)
        return found

    async def _prepare(self, change: Change, entered: str, turn: int) -> bool:
        """Write what may be there before the decision; whether one of the events has an outcome by now."""
        layout, name = self._layout, change.name
        asked: list[tuple[bytes, Sequence[bytes]]] = []
        for event in change.events:
            outcome = layout.outcome(event.event_id, name)
            asked.append((outcome, (b"GET", outcome)))
        for event in change.events:
            key = layout.event(event.event_id, name)
            asked.append((key, (b"SET", key, event.event, b"NX")))
        if entered:
            states = layout.states(name)
            asked += [
                (states, (b"SADD", states, entered.encode())),
                self._member_request("add", change.id, name, entered, turn),
            ]
        outcomes = (await self._ask(*asked))[: len(change.events)]
        return any(outcome is not None for outcome in outcomes)

    async def _decide(self, change: Change, machine: bytes, journal: Journal) -> bool:
        before = change.seen.machine
        arguments = [
            b"" if before is None else digest(before),
            b"%d" % change.seen.turn,
            change.action.value,
            change.machine,
            *arguments_of(journal),
        ]
        keys = [machine, self._layout.journal(machine)]
        (decided,) = await self._ask((machine, DECIDE.call(keys, arguments)))
        return decided == 1

    async def _follow(self, id: str, name: str, journal: Journal) -> None:  # noqa: A002  the field's word
        """Write everything that follows from decisions, and then forget them."""
        layout = self._layout
        machine, waiting = layout.machine(id, name), layout.waiting(name)
        notifications = [each.notification for each in journal.decisions if each.notification]
        asked: list[tuple[bytes, Sequence[bytes]]] = [(waiting, (b"HGET", waiting, id.encode()))]
        for decision in journal.decisions:
            key = layout.outcome(decision.event_id, name)
            asked.append((key, (b"SET", key, decision.outcome, *expiry(decision.milliseconds))))
            if self._event_milliseconds:
                event = layout.event(decision.event_id, name)
                asked.append((event, (b"PEXPIRE", event, b"%d" % self._event_milliseconds)))
        asked += [self._member_request("remove", id, name, move.leave, move.turn) for move in journal.moves]
        if notifications:
            asked += self._notification_requests(name, notifications)
        number, *_ = await self._ask(*asked)
        event_ids = [decision.event_id.encode() for decision in journal.decisions]
        fields = [each.field for each in journal.decisions] + [each.field for each in journal.moves]
        await self._finish(machine, name, id, fields, event_ids, number)

    async def _finish(
        self,
        machine: bytes,
        name: str,
        id: str,  # noqa: A002  the field's word
        fields: Sequence[bytes],
        event_ids: Sequence[bytes],
        number: object,
    ) -> None:
        """Take events off those that wait; `number` was read before, and tells whether another one came."""
        layout = self._layout
        waiting, accepted = layout.waiting(name), layout.accepted(name)
        keys = [layout.journal(machine), layout.pending(machine), layout.requests(machine), machine]
        arguments = [b"%d" % len(fields), *fields, *event_ids]
        (idle,) = await self._ask((machine, FINISH.call(keys, arguments)))
        if number is None:
            return  # no event to this machine was ever accepted, or none is pending
        asked: list[tuple[bytes, Sequence[bytes]]] = []
        if event_ids:
            asked.append((accepted, (b"HDEL", accepted, *event_ids)))
        if idle == 1:
            asked.append((waiting, IDLE.call([waiting], [id.encode(), as_bytes(number)])))
        if asked:
            await self._ask(*asked)

    async def configure(self, config_id: str, name: str, configuration: bytes) -> bytes | None:
        """Write a configuration unless there is one; that one, or None. The sets that list it follow.

        Whoever puts it again after a crash completes them.
        """
        layout = self._layout
        key, versions, configs = layout.config(config_id), layout.versions(name), layout.configs
        written, found = await self._ask((key, (b"SET", key, configuration, b"NX")), (key, (b"GET", key)))
        await self._ask(
            (versions, (b"SADD", versions, config_id.encode())), (configs, (b"SADD", configs, name.encode()))
        )
        return None if written is not None else as_bytes(found)

    async def accept(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        event_id: str,
        event: bytes,
        request: bytes,
    ) -> Pending | bytes:
        """Let an event wait, if it does not already; or the outcome that it has.

        The machine is noted among those that wait before and after its line has the event: so it is found
        there after a crash, and is not taken off by somebody who has found the line empty in between.
        """
        layout = self._layout
        outcome, accepted, waiting = (
            layout.outcome(event_id, name),
            layout.accepted(name),
            layout.waiting(name),
        )
        machine, encoded = layout.machine(id, name), event_id.encode()
        note = (waiting, (b"HINCRBY", waiting, id.encode(), b"1"))
        found, _, _, owner, _ = await self._ask(
            (outcome, (b"GET", outcome)),
            (layout.names, (b"SADD", layout.names, name.encode())),
            (accepted, (b"HSETNX", accepted, encoded, id.encode())),
            (accepted, (b"HGET", accepted, encoded)),
            note,
        )
        if found is not None:
            await self.forget([event_id], name)
            return as_bytes(found)
        other = as_bytes(owner) if owner is not None else id.encode()
        if other != id.encode():
            elsewhere = await self._pending(other.decode(), name, encoded)
            if elsewhere is not None:
                return elsewhere
            # Its first acceptance broke off before anybody was told of it.
            await self._ask((accepted, (b"HSET", accepted, encoded, id.encode())))
        keys = [layout.pending(machine), layout.requests(machine)]
        (reply,) = await self._ask((machine, ACCEPT.call(keys, [encoded, request])))
        _, place, first = as_list(reply)
        key = layout.event(event_id, name)
        found, *_ = await self._ask(
            (outcome, (b"GET", outcome)),
            (key, (b"SET", key, event, b"NX")),
            (key, (b"PERSIST", key)),
            note,
        )
        if found is not None:
            await self.forget([event_id], name)
            return as_bytes(found)
        return Pending(id, as_bytes(place).decode(), as_bytes(first))

    async def _pending(self, id: str, name: str, event_id: bytes) -> Pending | None:  # noqa: A002
        machine = self._layout.machine(id, name)
        pending, requests = self._layout.pending(machine), self._layout.requests(machine)
        place, request = await self._ask(
            (machine, (b"ZSCORE", pending, event_id)), (machine, (b"HGET", requests, event_id))
        )
        if place is None or request is None:
            return None
        return Pending(id, as_bytes(place).decode(), as_bytes(request))

    async def settle(
        self, event_id: str, name: str, outcome: bytes, milliseconds: int, notification: bytes
    ) -> bytes | None:
        """Give an event an outcome, and take it off those that wait; the one that it has already, or None."""
        found = await self.outcome(event_id, name)
        if found is None:
            if notification:
                # First, so that a crash in between does not lose it.
                await self._ask(*self._notification_requests(name, [notification]))
            key = self._layout.outcome(event_id, name)
            written, now = await self._ask(
                (key, (b"SET", key, outcome, b"NX", *expiry(milliseconds))), (key, (b"GET", key))
            )
            if written is None:
                found = as_bytes(now)
        await self.forget([event_id], name)
        return found

    async def forget(self, event_ids: Sequence[str], name: str) -> None:
        """Take events that have outcomes off those that wait."""
        accepted, waiting = self._layout.accepted(name), self._layout.waiting(name)
        for event_id in event_ids:
            (owner,) = await self._ask((accepted, (b"HGET", accepted, event_id.encode())))
            if owner is None:
                continue
            id_ = as_bytes(owner)
            # The outcome may be all that has followed so far.
            await self.look(id_.decode(), name, ())
            (number,) = await self._ask((waiting, (b"HGET", waiting, id_)))
            machine = self._layout.machine(id_.decode(), name)
            await self._finish(machine, name, id_.decode(), (), [event_id.encode()], number)

    async def outcome(self, event_id: str, name: str) -> bytes | None:
        """The outcome of an event, if it has one or was decided upon at the machine that it waits for."""
        key, accepted = self._layout.outcome(event_id, name), self._layout.accepted(name)
        found, owner = await self._ask(
            (key, (b"GET", key)), (accepted, (b"HGET", accepted, event_id.encode()))
        )
        if found is None and owner is not None:
            found = (await self.look(as_bytes(owner).decode(), name, [event_id])).outcomes.get(event_id)
        return None if found is None else as_bytes(found)

    async def waiting(self, name: str) -> Sequence[str]:
        """Ids of the machines that events wait for."""
        layout = self._layout
        waiting = layout.waiting(name)
        (reply,) = await self._ask((waiting, (b"HGETALL", waiting)))
        entries = as_list(reply)
        ids, numbers = as_texts(entries[::2], "ids of waiting machines"), entries[1::2]
        pending = [layout.pending(layout.machine(each, name)) for each in ids]
        counts = await self._ask(*((key, (b"ZCARD", key)) for key in pending))
        idle = [
            (waiting, IDLE.call([waiting], [each.encode(), as_bytes(number)]))
            for each, number, count in zip(ids, numbers, counts, strict=True)
            if not count
        ]
        if idle:
            await self._ask(*idle)
        return [each for each, count in zip(ids, counts, strict=True) if count]

    async def in_state(self, name: str, state: str, ids: Sequence[str]) -> Sequence[str]:
        """Those of the members of a state set that are in this state; the others are taken out."""
        layout = self._layout
        machines = [layout.machine(each, name) for each in ids]
        # The turn first: the machine is then of that turn, or of a later one.
        turns = await self._ask(
            *(
                (key, command)
                for key in machines
                for command in ((b"HGET", layout.journal(key), b"turn"), (b"GET", key))
            )
        )
        inside: list[str] = []
        outside: list[tuple[bytes, Sequence[bytes]]] = []
        for id_, key, turn, value in zip(ids, machines, turns[::2], turns[1::2], strict=True):
            number = int(as_bytes(turn)) if turn is not None else 0
            if self._is_in(Seen(None if value is None else as_bytes(value), {}), key, state):
                inside.append(id_)
            else:
                outside.append(self._member_request("remove", id_, name, state, number))
        if outside:
            await self._ask(*outside)
        return inside

    async def align(self, id: str, name: str, states: Sequence[str]) -> int:  # noqa: A002  the field's word
        """Bring the state sets into line with a machine; the number of sets that were wrong."""
        machine = self._layout.machine(id, name)
        sets = [self._layout.state(name, state) for state in states]
        wrong = 0
        seen = await self.look(id, name, ())
        while True:
            members = await self._ask(*((key, (b"SISMEMBER", key, id.encode())) for key in sets))
            inside = [self._is_in(seen, machine, state) for state in states]
            await self._ask(
                *(
                    self._member_request("add" if is_in else "remove", id, name, state, seen.turn)
                    for state, is_in in zip(states, inside, strict=True)
                )
            )
            wrong += sum(bool(member) != is_in for member, is_in in zip(members, inside, strict=True))
            # Whoever was faster has not seen what was just written.
            again = await self.look(id, name, ())
            if (again.turn, again.machine) == (seen.turn, seen.machine):
                return wrong
            seen = again

    def _is_in(self, seen: Seen, key: bytes, state: str) -> bool:
        machine = machine_of(seen, key.decode())
        return machine is not None and machine.state == state

    async def _member(self, action: str, id: str, name: str, state: str, turn: int) -> None:  # noqa: A002
        await self._ask(self._member_request(action, id, name, state, turn))

    def _member_request(
        self,
        action: str,
        id: str,  # noqa: A002  the field's word
        name: str,
        state: str,
        turn: int,
    ) -> tuple[bytes, Sequence[bytes]]:
        key = self._layout.state(name, state)
        arguments = [action.encode(), id.encode(), b"%d" % turn]
        return key, MEMBER.call([key, self._layout.turns(key)], arguments)

    def _notification_requests(
        self, name: str, notifications: Sequence[bytes]
    ) -> list[tuple[bytes, Sequence[bytes]]]:
        layout = self._layout
        keys = [layout.sequence(name), layout.notifications(name)]
        return [
            (layout.names, (b"SADD", layout.names, name.encode())),
            (keys[0], NOTIFY.call(keys, notifications)),
        ]

    async def _ask(self, *commands: tuple[bytes, Sequence[bytes]]) -> Sequence[object]:
        """The answers to commands, each with the key that says where it goes."""
        slot = self._layout.slot
        return await self._connections.ask([Request(slot(key), command) for key, command in commands])
