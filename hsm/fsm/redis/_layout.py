"""Names of keys: those of the layout that other programs share, and those of what is ours alone.

Ours begin with `hsm:`. On a cluster, `{...}` in a name keeps keys in one slot that have to change together.

| key | content |
|---|---|
| `hsm:fsm:names` | set of the configuration names that have anything of the following |
| `hsm:fsm:{<name>}:states` | set of all states that a machine was ever put into |
| `hsm:fsm:{<name>}:accepted` | hash of accepted events without an outcome: machine by event |
| `hsm:fsm:{<name>}:waiting` | set of the ids of their machines; on a cluster a hash |
| `hsm:fsm:{<name>}:sequence` | counter of notifications |
| `hsm:fsm:{<name>}:notifications` | sorted set of `EventResponse` that somebody is to be told of |
| `hsm:{<key of a machine>}:pending` | sorted set of the ids of its accepted events, in their order |
| `hsm:{<key of a machine>}:requests` | hash of their `EventRequest` by event id |
| `hsm:{<key of a machine>}:damaged` | hash by event id of what stood in place of a request, and was none |
| `hsm:{<key of a machine>}:journal` | on a cluster: hash with the machine's turn and decisions on their way |
| `hsm:{<key of a state set>}:turns` | on a cluster: hash of the turn in which each member came |
"""

from __future__ import annotations

from typing import Final

from redis.crc import key_slot

from hsm.fsm.errors import InvalidDataError
from hsm.fsm.keys import (
    CONFIGS_PREFIX,
    DEFAULT_NAMESPACE,
    new_key_for_config,
    new_key_for_event,
    new_key_for_machine,
    new_key_for_machines_by_state,
    new_key_for_outcome,
    new_key_for_versions,
)

__all__ = ["Layout"]

_OURS: Final = "hsm:fsm:"


class Layout:
    """Keys of a namespace. The default one has those of the layout; any other puts its name before them."""

    def __init__(self, namespace: str, *, cluster: bool) -> None:
        self._prefix = "" if namespace == DEFAULT_NAMESPACE else f"ns#{_escaped(namespace)}#"
        self._cluster = cluster

    def slot(self, key: bytes) -> int:
        """The hash slot of a key; a single server has one for all."""
        return int(key_slot(key)) if self._cluster else 0

    def text(self, text: str) -> bytes:
        """A text as it stands in a set.

        Raises:
            InvalidDataError: it is none.
        """
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise InvalidDataError(f"{text!r} is no text: {error}") from error

    def _key(self, name: str) -> bytes:
        return self.text(self._prefix + name)

    @property
    def configs(self) -> bytes:
        """Set of the names of configurations."""
        return self._key(CONFIGS_PREFIX)

    def versions(self, name: str) -> bytes:
        """Set of the versions of a name."""
        return self._key(new_key_for_versions(name))

    def config(self, config_id: str) -> bytes:
        """A configuration."""
        return self._key(new_key_for_config(config_id))

    def machine(self, id: str, name: str) -> bytes:  # noqa: A002  the field's word
        """A machine."""
        return self._key(new_key_for_machine(id, name))

    def machine_pattern(self, name: str) -> bytes:
        """A pattern that the machines of a name match, and perhaps other keys."""
        key = self._prefix + new_key_for_machine("", name)
        return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in key).encode() + b"*"

    def machine_of(self, key: bytes, name: str) -> bytes | None:
        """The id of the machine that has this key; None if it is another kind of key."""
        start = self.machine("", name)
        return key[len(start) :] if key.startswith(start) else None

    def state(self, name: str, state: str) -> bytes:
        """Set of the machines in a state."""
        return self._key(new_key_for_machines_by_state(name, state))

    def event(self, event_id: str, name: str) -> bytes:
        """An event."""
        return self._key(new_key_for_event(event_id, name))

    def outcome(self, event_id: str, name: str) -> bytes:
        """The outcome of an event."""
        return self._key(new_key_for_outcome(event_id, name))

    @property
    def names(self) -> bytes:
        """Set of the names that have accepted events or notifications."""
        return self._key(f"{_OURS}names")

    def states(self, name: str) -> bytes:
        """Set of the states of a name's machines."""
        return self._own(name, "states")

    def sequence(self, name: str) -> bytes:
        """Counter of a name."""
        return self._own(name, "sequence")

    def accepted(self, name: str) -> bytes:
        """Machines of the accepted events of a name."""
        return self._own(name, "accepted")

    def waiting(self, name: str) -> bytes:
        """Machines of a name that have accepted events."""
        return self._own(name, "waiting")

    def notifications(self, name: str) -> bytes:
        """Notifications of a name in their order."""
        return self._own(name, "notifications")

    def _own(self, name: str, what: str) -> bytes:
        return self._key(f"{_OURS}{{{name}}}:{what}")

    def pending(self, machine: bytes) -> bytes:
        """Accepted events of a machine, by the machine's key."""
        return self._companion(machine, b"pending")

    def requests(self, machine: bytes) -> bytes:
        """Requests of the accepted events of a machine, by the machine's key."""
        return self._companion(machine, b"requests")

    def damaged(self, machine: bytes) -> bytes:
        """What stood in place of requests of a machine, by the machine's key."""
        return self._companion(machine, b"damaged")

    def journal(self, machine: bytes) -> bytes:
        """Journal of a machine, by the machine's key."""
        return self._companion(machine, b"journal")

    def turns(self, state: bytes) -> bytes:
        """Turns of the members of a state set, by the set's key."""
        return self._companion(state, b"turns")

    def _companion(self, key: bytes, what: bytes) -> bytes:
        """A key in the slot of another one.

        Raises:
            InvalidDataError: there can be none, because of braces in the name.
        """
        _, opened, rest = key.partition(b"{")
        tag, closed, _ = rest.partition(b"}")
        if opened and closed and tag:
            return b"hsm:%b:%b" % (key, what)
        if self._cluster and b"}" in key:
            raise InvalidDataError(f"key {key.decode()!r} cannot be used on a cluster because of its braces")
        return b"hsm:{%b}:%b" % (key, what)


def _escaped(namespace: str) -> str:
    """A namespace without what ends it, and without braces, which decide upon slots."""
    return "".join(f"%{ord(letter):02X}" if letter in "%#{}" else letter for letter in namespace)
