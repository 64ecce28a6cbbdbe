"""Rows of the goal-state engine: their keys. The partition of a shard holds everything about its entities.

Keys are segments joined by `/`; a segment has its own `%` and `/` escaped. The prefixes:

| key | row |
|---|---|
| `g/<kind>/<id>` | an entity: when it is due, attempts, goal, and who runs it now |
| `t/<due>/<kind>/<id>` | entity that is scheduled; `due` in nanoseconds with 20 digits |
| `r/<kind>/<id>` | entity that is run now |
| `d/<kind>/<id>` | entity that was given up |

The last three follow from the first, and are written with it. The partition `goal` holds what concerns all
shards, as the partition `exec` does for executions: `settings`, members, owners of shards, bells.
"""

from __future__ import annotations

from typing import Final

from persistence.executions import escape, unescape

__all__ = [
    "GOAL_SETTINGS_PARTITION",
    "entity_key",
    "given_up_key",
    "goal_partition",
    "parse_entity_key",
    "running_key",
    "scheduled_key",
    "scheduled_prefix",
]

GOAL_SETTINGS_PARTITION: Final = "goal"


def goal_partition(shard: int) -> str:
    """The partition of a shard."""
    return f"goal/{shard}"


def entity_key(kind: str, id_: str) -> str:
    """Key of the row of an entity."""
    return f"g/{escape(kind)}/{escape(id_)}"


def scheduled_prefix(due_nanos: int) -> str:
    """What is due before this time has a smaller key, and what is due later a greater one."""
    return f"t/{max(due_nanos, 0):020d}"


def scheduled_key(due_nanos: int, kind: str, id_: str) -> str:
    """Key of the row by which an entity is found when it is due."""
    return f"{scheduled_prefix(due_nanos)}/{escape(kind)}/{escape(id_)}"


def running_key(kind: str, id_: str) -> str:
    """Key of the row by which a run is found whose process has ended."""
    return f"r/{escape(kind)}/{escape(id_)}"


def given_up_key(kind: str, id_: str) -> str:
    """Key of the row by which an entity is found that was given up."""
    return f"d/{escape(kind)}/{escape(id_)}"


def parse_entity_key(key: str) -> tuple[str, str]:
    """Kind and id, as given to any of the functions above."""
    _, kind, id_ = key.rsplit("/", 2)
    return unescape(kind), unescape(id_)
