"""Rows of configurations, machines and events: their partitions and keys.

Names and ids that end a key stand as they are, so that rows are in their order; others have `%` and `/`
escaped. The partition `fsm/<namespace>` holds configurations:

| key | row |
|---|---|
| `n/<name>` | there is a configuration of this name |
| `c/<name>/<version>` | `Configuration` |

The partition `fsm/<namespace>/<name>` holds everything about the machines of a configuration name:

| key | row |
|---|---|
| `m/<machine>` | `MachineRow`: a machine, without history |
| `h/<machine>/<number>` | `Event`: one event of its history; the number has 20 digits |
| `s/<state>/<machine>` | the machine is in this state |
| `e/<event>` | `EventRow`: an event as it was sent, if it waited for its outcome |
| `o/<event>` | `OutcomeRow`: an outcome, and an event that did not wait for it |
| `p/<machine>/<position>` | `EventRequest`: accepted, without an outcome yet |
| `x/<position>` | `EventResponse`: somebody is to be told of it |
| `d/<machine>/<position>` | what stood in place of a pending event, and was none |
| `g/<machine>/<number>` | `MachineRow` of a deleted machine whose history is still to be deleted |

A position is a time in nanoseconds, with 20 digits, and the id of the event. The number of a deleted machine
is where its history ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from hsm.fsm.configuration import check_id
from hsm.fsm.errors import InvalidDataError, InvalidIdentifierError
from persistence.executions import escape, unescape

__all__ = [
    "DELETED",
    "NAMES",
    "NOTIFICATIONS",
    "PENDING",
    "check_stored_id",
    "config_key",
    "config_partition",
    "config_prefix",
    "damaged_key",
    "decode",
    "deleted_key",
    "deleted_machine",
    "event_key",
    "event_of",
    "history_key",
    "machine_key",
    "machine_partition",
    "name_key",
    "notification_key",
    "outcome_key",
    "pending_key",
    "pending_machine",
    "pending_prefix",
    "position_of",
    "state_key",
    "state_prefix",
]

MessageT = TypeVar("MessageT", bound=Message)

NAMES: Final = "n/"
PENDING: Final = "p/"
NOTIFICATIONS: Final = "x/"
DELETED: Final = "g/"

# There are few names and states, and each event asks for some of them again.
_REMEMBERED: Final = 10_000


def config_partition(namespace: str) -> str:
    """The partition of the configurations of a namespace."""
    return f"fsm/{escape(namespace)}"


@lru_cache(maxsize=_REMEMBERED)
def machine_partition(namespace: str, name: str) -> str:
    """The partition of the machines of a configuration name."""
    return f"fsm/{escape(namespace)}/{escape(name)}"


def name_key(name: str) -> str:
    """Key of the row that says that there is a configuration of a name."""
    return NAMES + name


def config_prefix(name: str) -> str:
    """Prefix of the rows of all versions of a name."""
    return f"c/{escape(name)}/"


def config_key(name: str, version: str) -> str:
    """Key of a configuration."""
    return config_prefix(name) + version


def machine_key(id: str) -> str:  # noqa: A002  the word of the field
    """Key of a machine."""
    return f"m/{id}"


def history_key(id: str, number: int) -> str:  # noqa: A002  the word of the field
    """Key of an event of a machine's history."""
    return f"h/{escape(id)}/{number:020}"


@lru_cache(maxsize=_REMEMBERED)
def state_prefix(state: str) -> str:
    """Prefix of the rows of all machines in a state."""
    return f"s/{escape(state)}/"


def state_key(state: str, id: str) -> str:  # noqa: A002  the word of the field
    """Key of the row that says that a machine is in a state."""
    return state_prefix(state) + id


def event_key(event_id: str) -> str:
    """Key of an event."""
    return f"e/{event_id}"


def outcome_key(event_id: str) -> str:
    """Key of the outcome of an event."""
    return f"o/{event_id}"


def position_of(nanos: int, event_id: str) -> str:
    """The position of an event that was accepted, or had its outcome, at a time."""
    return f"{nanos:020}/{event_id}"


def event_of(position: str) -> str:
    """The id of the event of a position."""
    return position.partition("/")[2]


def pending_prefix(id: str) -> str:  # noqa: A002  the word of the field
    """Prefix of the rows of the pending events of a machine."""
    return f"{PENDING}{escape(id)}/"


def pending_key(id: str, position: str) -> str:  # noqa: A002  the word of the field
    """Key of a pending event."""
    return pending_prefix(id) + position


def pending_machine(key: str) -> str:
    """The machine of a key that `pending_key` has made."""
    return unescape(key.split("/", 2)[1])


def damaged_key(id: str, position: str) -> str:  # noqa: A002  the word of the field
    """Key of what stood in place of a pending event."""
    return f"d/{escape(id)}/{position}"


def deleted_key(id: str, number: int) -> str:  # noqa: A002  the word of the field
    """Key of a deleted machine whose history is still there; the number is where that ends."""
    return f"{DELETED}{escape(id)}/{number:020}"


def deleted_machine(key: str) -> str:
    """The machine of a key that `deleted_key` has made."""
    return unescape(key.split("/", 2)[1])


def notification_key(position: str) -> str:
    """Key of an outcome that somebody is to be told of."""
    return NOTIFICATIONS + position


def check_stored_id(id: str, what: str) -> None:  # noqa: A002  the word of the field
    """Refuse an id that no store can carry.

    Raises:
        InvalidDataError: as `check_id` says.
    """
    try:
        check_id(id, what)
    except InvalidIdentifierError as error:
        raise InvalidDataError(str(error)) from error


def decode(parse: Callable[[bytes], MessageT], data: bytes, what: str) -> MessageT:
    """A message from the bytes of a row.

    Raises:
        InvalidDataError: they are none.
    """
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidDataError(f"{what} cannot be decoded: {error}") from error
