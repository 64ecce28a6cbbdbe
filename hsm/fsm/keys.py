"""Names: the keys of the Redis layout, default values, and the texts of messages.

| key | content |
|---|---|
| `configs` | set of the names of configurations |
| `configs#<name>` | set of `name:version` |
| `configs#<name:version>` | `Configuration` |
| `fsm:<name>#<id>` | `FiniteStateMachine` |
| `fsm:<name>:state#<state>` | set of the ids of machines |
| `events:<name>#<event id>` | `Event` |
| `events:<name>:outcome#<event id>` | `EventOutcome` |

Layout, defaults and messages: go-statemachine (v0.14.0).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

__all__ = [
    "CONFIGS_PREFIX",
    "CONFIG_ID_SEPARATOR",
    "DEFAULT_MAX_RETRIES",
    "DEFAULT_NAMESPACE",
    "DEFAULT_TIMEOUT",
    "DEFAULT_VERSION",
    "EVENTS_PREFIX",
    "FSM_PREFIX",
    "KEY_PREFIX_COMPONENTS_SEPARATOR",
    "KEY_PREFIX_ID_SEPARATOR",
    "MALFORMED_MESSAGE",
    "MISSING_CONFIG_MESSAGE",
    "MISSING_DESTINATION_MESSAGE",
    "MISSING_EVENT_NAME_MESSAGE",
    "NEVER_EXPIRE",
    "OUTCOME_SUFFIX",
    "STATE_SUFFIX",
    "UNEXPECTED_TRANSITION_MESSAGE",
    "config_id_of",
    "config_name_of",
    "new_key_for_config",
    "new_key_for_event",
    "new_key_for_machine",
    "new_key_for_machines_by_state",
    "new_key_for_outcome",
    "new_key_for_versions",
]

KEY_PREFIX_COMPONENTS_SEPARATOR: Final = ":"
KEY_PREFIX_ID_SEPARATOR: Final = "#"
CONFIG_ID_SEPARATOR: Final = ":"
"""Between the name and the version of a configuration."""
CONFIGS_PREFIX: Final = "configs"
FSM_PREFIX: Final = "fsm"
EVENTS_PREFIX: Final = "events"
STATE_SUFFIX: Final = "state"
OUTCOME_SUFFIX: Final = "outcome"

NEVER_EXPIRE: Final = timedelta()
"""A time to live without an end."""
DEFAULT_TIMEOUT: Final = timedelta(milliseconds=200)
"""For one command to Redis."""
DEFAULT_MAX_RETRIES: Final = 3
"""Attempts in all."""
DEFAULT_VERSION: Final = "v1"
"""Of a configuration that has none."""
DEFAULT_NAMESPACE: Final = "default"

MALFORMED_MESSAGE: Final = "this configuration cannot be parsed"
UNEXPECTED_TRANSITION_MESSAGE: Final = "unexpected event transition"
MISSING_DESTINATION_MESSAGE: Final = "no statemachine ID specified"
MISSING_CONFIG_MESSAGE: Final = "no Configuration name specified"
MISSING_EVENT_NAME_MESSAGE: Final = "no event name specified"


def config_id_of(name: str, version: str) -> str:
    """The identity of a configuration: `name:version`."""
    return f"{name}{CONFIG_ID_SEPARATOR}{version}"


def config_name_of(config_id: str) -> str:
    """The name of a configuration from its identity: everything before the first colon."""
    return config_id.partition(CONFIG_ID_SEPARATOR)[0]


def new_key_for_config(config_id: str) -> str:
    """Key of the configuration `name:version`."""
    return f"{CONFIGS_PREFIX}{KEY_PREFIX_ID_SEPARATOR}{config_id}"


def new_key_for_versions(name: str) -> str:
    """Key of the set of all versions of a name."""
    return f"{CONFIGS_PREFIX}{KEY_PREFIX_ID_SEPARATOR}{name}"


def new_key_for_machine(id: str, name: str) -> str:  # noqa: A002  the word of the field
    """Key of a machine of the configuration `name`."""
    return f"{FSM_PREFIX}{KEY_PREFIX_COMPONENTS_SEPARATOR}{name}{KEY_PREFIX_ID_SEPARATOR}{id}"


def new_key_for_machines_by_state(name: str, state: str) -> str:
    """Key of the set of machines of the configuration `name` that are in a state."""
    return _joined(FSM_PREFIX, name, STATE_SUFFIX) + KEY_PREFIX_ID_SEPARATOR + state


def new_key_for_event(event_id: str, name: str) -> str:
    """Key of an event to a machine of the configuration `name`."""
    return f"{EVENTS_PREFIX}{KEY_PREFIX_COMPONENTS_SEPARATOR}{name}{KEY_PREFIX_ID_SEPARATOR}{event_id}"


def new_key_for_outcome(event_id: str, name: str) -> str:
    """Key of the outcome of an event."""
    return _joined(EVENTS_PREFIX, name, OUTCOME_SUFFIX) + KEY_PREFIX_ID_SEPARATOR + event_id


def _joined(*components: str) -> str:
    return KEY_PREFIX_COMPONENTS_SEPARATOR.join(components)
