"""Tasks: what a transition asks to be done later, when and where."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import attrs

if TYPE_CHECKING:
    from hsm.ref import Ref
    from hsm.tree import Node

__all__ = [
    "ImmediateKind",
    "OutboundKind",
    "Singleton",
    "Task",
    "TaskKind",
    "TaskSerializer",
    "TaskType",
    "TimerKind",
    "ValidatedTask",
]


class TaskType(NamedTuple):
    """The identity of a type of task.

    Attributes:
        id: an int32, persisted: never change or reuse it.
        name: for people, and of its queue, unless it is registered with a group: a new name is a new queue.
    """

    id: int
    name: str


def _require_aware(_: TimerKind, attribute: attrs.Attribute[datetime], value: datetime) -> None:
    if value.utcoffset() is None:
        raise ValueError(f"{attribute.name} {value.isoformat()} has no time zone")


@attrs.frozen
class TimerKind:
    """Fires at `deadline` or later, never before.

    Attributes:
        deadline: an aware datetime.
    """

    deadline: datetime = attrs.field(validator=_require_aware)


@attrs.frozen
class OutboundKind:
    """Runs in the queue of a destination, which bounds and isolates it.

    Attributes:
        destination: for example scheme and host of a URL.
    """

    destination: str


@attrs.frozen
class ImmediateKind:
    """Runs as soon as possible, outside the lock, without a destination."""


TaskKind: TypeAlias = TimerKind | OutboundKind | ImmediateKind


class Singleton(enum.Enum):
    """What a second task of the same type on the same node does to the first, while that is pending."""

    REPLACE = "replace"
    IGNORE = "ignore"


@runtime_checkable
class Task(Protocol):
    """Something to do after the commit of the transition that returned it.

    It is stale, and dropped, as soon as its node has made another transition; a `ValidatedTask` decides
    that for itself.

    Semantics: Temporal `hsm.Task` (v1.24).
    """

    type: ClassVar[TaskType]

    @property
    def kind(self) -> TaskKind:
        """When and where it runs."""
        ...


@runtime_checkable
class ValidatedTask(Task, Protocol):
    """A task that knows when it has become pointless."""

    def validate(self, ref: Ref, node: Node) -> None:
        """Return if the task still makes sense.

        Asked when the task is added, by every commit that changes its machine, before each run, and by the
        write of its executor. `ref.attempt` is 1 when it is added, the number of the run in the last two
        cases, and 0 in between, when it waits.

        Raises:
            StaleReferenceError: it does not; the task is dropped.
        """
        ...


TaskT = TypeVar("TaskT", bound=Task)


class TaskSerializer(Protocol[TaskT]):
    """The payload of a type of task to bytes and back. Its kind is stored beside the payload."""

    def serialize(self, task: TaskT, /) -> bytes:
        """The persisted form of the payload."""
        ...

    def deserialize(self, data: bytes, kind: TaskKind, /) -> TaskT:
        """A fresh task.

        Raises:
            InvalidTaskKindError: tasks of this type are of another kind.
        """
        ...
