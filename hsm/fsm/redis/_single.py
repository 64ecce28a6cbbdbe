"""One server: every change is one call of a script, which happens as a whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hsm.fsm.errors import InvalidDataError
from hsm.fsm.redis._changes import Action, Change, Pending, Seen
from hsm.fsm.redis._connections import Connections
from hsm.fsm.redis._deciding import machine_of
from hsm.fsm.redis._layout import Layout
from hsm.fsm.redis._replies import as_bytes, as_list, as_texts
from hsm.fsm.redis._scripts import ACCEPT, COMMIT, CONFIGURE, SETTLE, digest
from persistence.stores.redis.dispatch import Request

__all__ = ["SingleWriter"]

_FOLLOWED: Final = 3


class SingleWriter:
    """Writes to a server that has all keys."""

    def __init__(
        self, connections: Connections, layout: Layout, event_milliseconds: int, outcome_milliseconds: int
    ) -> None:
        self._connections = connections
        self._layout = layout
        self._event_milliseconds = b"%d" % event_milliseconds
        self._outcome_milliseconds = b"%d" % outcome_milliseconds

    async def look(self, id: str, name: str, event_ids: Sequence[str]) -> Seen:  # noqa: A002  the field's word
        """A machine and the outcomes of events, as they are now."""
        layout = self._layout
        keys = [layout.machine(id, name), *(layout.outcome(each, name) for each in event_ids)]
        machine, *outcomes = await self._ask([[b"GET", key] for key in keys])
        return _seen(machine, event_ids, outcomes)

    async def write(self, change: Change) -> Seen | None:
        """Write a change; None if that is done, else what stood against it, and nothing was written."""
        layout, name = self._layout, change.name
        machine = layout.machine(change.id, name)
        keys = [
            machine,
            layout.pending(machine),
            layout.requests(machine),
            layout.state(name, change.leave),
            layout.state(name, change.enter),
            layout.states(name),
            layout.waiting(name),
            layout.accepted(name),
            layout.sequence(name),
            layout.notifications(name),
            layout.names,
        ]
        before = change.seen.machine
        arguments = [
            b"" if before is None else digest(before),
            change.id.encode(),
            change.action.value,
            change.machine,
            b"1" if change.leave else b"",
            change.enter.encode(),
            name.encode(),
        ]
        for event in change.events:
            keys += (layout.outcome(event.event_id, name), layout.event(event.event_id, name))
            arguments += (
                event.event_id.encode(),
                event.outcome,
                self._outcome_milliseconds,
                event.event,
                self._event_milliseconds,
                event.notification,
            )
        (reply,) = await self._ask([COMMIT.call(keys, arguments)])
        word, *rest = as_list(reply)
        if word == b"done":
            return None
        found, outcomes = rest
        return _seen(found, [event.event_id for event in change.events], as_list(outcomes))

    async def configure(self, config_id: str, name: str, configuration: bytes) -> bytes | None:
        """Write a configuration unless there is one; that one, or None."""
        layout = self._layout
        keys = [layout.config(config_id), layout.versions(name), layout.configs]
        arguments = [configuration, config_id.encode(), name.encode()]
        (reply,) = await self._ask([CONFIGURE.call(keys, arguments)])
        return None if reply is None else as_bytes(reply)

    async def accept(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        event_id: str,
        event: bytes,
        request: bytes,
    ) -> Pending | bytes:
        """Let an event wait, if it does not already; or the outcome that it has."""
        layout = self._layout
        for _ in range(_FOLLOWED):
            machine = layout.machine(id, name)
            keys = [
                layout.pending(machine),
                layout.requests(machine),
                layout.outcome(event_id, name),
                layout.event(event_id, name),
                layout.accepted(name),
                layout.waiting(name),
                layout.names,
            ]
            arguments = [
                event_id.encode(),
                request,
                id.encode(),
                name.encode(),
                event,
            ]
            (reply,) = await self._ask([ACCEPT.call(keys, arguments)])
            word, *rest = as_list(reply)
            if word == b"outcome":
                return as_bytes(rest[0])
            if word == b"pending":
                return Pending(id, as_bytes(rest[0]).decode(), as_bytes(rest[1]))
            id = as_bytes(rest[0]).decode()  # noqa: A001  as above
        raise InvalidDataError(f"event {event_id!r} of {name!r} waits for {id!r}, which does not know it")

    async def settle(
        self, event_id: str, name: str, outcome: bytes, milliseconds: int, notification: bytes
    ) -> bytes | None:
        """Give an event an outcome, and take it off those that wait; the one that it has already, or None."""
        return await self._settle(event_id, name, outcome, milliseconds, notification)

    async def _settle(
        self,
        event_id: str,
        name: str,
        outcome: bytes | None,
        milliseconds: int = 0,
        notification: bytes = b"",
    ) -> bytes | None:
        layout = self._layout
        (accepted,) = await self._ask([[b"HGET", layout.accepted(name), event_id.encode()]])
        id_ = as_bytes(accepted) if accepted is not None else b""
        machine = layout.machine(id_.decode(), name)
        keys = [
            layout.outcome(event_id, name),
            layout.pending(machine),
            layout.requests(machine),
            layout.waiting(name),
            layout.accepted(name),
            layout.sequence(name),
            layout.notifications(name),
            layout.names,
        ]
        arguments = [
            event_id.encode(),
            outcome or b"",
            b"%d" % milliseconds,
            notification,
            id_,
            name.encode(),
            b"" if outcome is None else b"1",
        ]
        (reply,) = await self._ask([SETTLE.call(keys, arguments)])
        return None if reply is None else as_bytes(reply)

    async def forget(self, event_ids: Sequence[str], name: str) -> None:
        """Take events that have outcomes off those that wait."""
        for event_id in event_ids:
            await self._settle(event_id, name, None)

    async def outcome(self, event_id: str, name: str) -> bytes | None:
        """The outcome of an event, if it has one."""
        (reply,) = await self._ask([[b"GET", self._layout.outcome(event_id, name)]])
        return None if reply is None else as_bytes(reply)

    async def waiting(self, name: str) -> Sequence[str]:
        """Ids of the machines that events wait for."""
        (reply,) = await self._ask([[b"SMEMBERS", self._layout.waiting(name)]])
        return as_texts(reply, "ids of waiting machines")

    async def in_state(self, name: str, state: str, ids: Sequence[str]) -> Sequence[str]:  # noqa: ARG002
        """All of them: the sets change together with the machines."""
        return ids

    async def align(self, id: str, name: str, states: Sequence[str]) -> int:  # noqa: A002  the field's word
        """Bring the state sets into line with a machine; the number of sets that were wrong."""
        wrong = 0
        for state in states:
            while True:
                seen = await self.look(id, name, ())
                machine = machine_of(seen, self._layout.machine(id, name).decode())
                inside = machine is not None and machine.state == state
                key = self._layout.state(name, state)
                (member,) = await self._ask([[b"SISMEMBER", key, id.encode()]])
                if bool(member) == inside:
                    break
                leave, enter = ("", state) if inside else (state, "")
                if await self.write(Change(id, name, seen, Action.KEEP, leave=leave, enter=enter)) is None:
                    wrong += 1
                    break
        return wrong

    async def _ask(self, commands: Sequence[Sequence[bytes]]) -> Sequence[object]:
        return await self._connections.ask([Request(0, command) for command in commands])


def _seen(machine: object, event_ids: Sequence[str], outcomes: Sequence[object]) -> Seen:
    found = {
        event_id: as_bytes(outcome)
        for event_id, outcome in zip(event_ids, outcomes, strict=True)
        if outcome is not None
    }
    return Seen(None if machine is None else as_bytes(machine), found)
