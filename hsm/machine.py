"""Machines: what the tree asks of a type of machine and of its data."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, runtime_checkable

from google.protobuf.message import Message

if TYPE_CHECKING:
    from hsm.task import Task
    from hsm.tree import Node

__all__ = [
    "ComparableDefinition",
    "HasLifecycle",
    "HasState",
    "Key",
    "Lifecycle",
    "MachineDefinition",
    "MachineType",
    "StateMachine",
    "TaskRegenerator",
    "VersionedTransition",
    "lifecycle_of",
    "state_name",
]

DataT = TypeVar("DataT")
DataT_contra = TypeVar("DataT_contra", contravariant=True)
StateT = TypeVar("StateT")


class MachineType(NamedTuple):
    """The identity of a type of machine.

    Attributes:
        id: an int32, persisted: never change or reuse it.
        name: for people.
    """

    id: int
    name: str


class Key(NamedTuple):
    """A machine's place among its siblings. The id may be empty, for a child that is the only one.

    Attributes:
        type: id of the machine type.
        id: unique among siblings of that type.
    """

    type: int
    id: str

    def __str__(self) -> str:
        return f"{self.type}:{self.id}"


class VersionedTransition(NamedTuple):
    """A point in the history of an execution.

    Attributes:
        failover_version: version of the cluster that wrote; greater is newer.
        transition_count: transactions of the execution so far; 0 is "not known".
    """

    failover_version: int = 0
    transition_count: int = 0


class MachineDefinition(Protocol[DataT]):
    """A type of machine, as a `Registry` holds it: its identity, and its data to bytes and back.

    It may name the class of its data in an attribute `data_type`; then the type can be told from the data.

    Semantics: Temporal `hsm.StateMachineDefinition`.
    """

    @property
    def type(self) -> MachineType:
        """The machine type; the same for ever."""
        ...

    def serialize(self, data: DataT, /) -> bytes:
        """The persisted form of `data`."""
        ...

    def deserialize(self, data: bytes, /) -> DataT:
        """A fresh object; must accept everything that `serialize` ever wrote."""
        ...


@runtime_checkable
class ComparableDefinition(Protocol[DataT_contra]):
    """A definition that can tell which of two states is newer, for sync without versions."""

    def compare(self, a: DataT_contra, b: DataT_contra, /) -> int:
        """Greater than 0 if `a` is newer, less if `b` is, 0 if they are equal."""
        ...


class HasState(Protocol[StateT]):
    """Data with a state. A protobuf message with a `state` field is one."""

    state: StateT


@runtime_checkable
class TaskRegenerator(Protocol):
    """Data that can name again the tasks of its present state; needed for refresh and sync."""

    def regenerate_tasks(self, node: Node) -> Iterable[Task]:
        """The tasks that the machine waits for now, told from the data alone."""
        ...


class StateMachine(HasState[StateT], TaskRegenerator, Protocol[StateT]):
    """Data with a state and the tasks that belong to it."""


class Lifecycle(enum.Enum):
    """Whether a machine has more to do. The root's is the status of the execution.

    TERMINATED is what an execution becomes that is closed by force. A machine cannot say that of itself: its
    execution counts as failed then.
    """

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TERMINATED = "terminated"


class HasLifecycle(Protocol):
    """Data that knows when it is through. As the root of an execution, it closes the execution.

    Listings then show the execution as completed or failed, and since when. Until a transition takes the root
    back to running, that is all: pending tasks still run, and the tree can be read and written.
    """

    @property
    def lifecycle(self) -> Lifecycle:
        """Where the machine stands."""
        ...


def state_name(data: object) -> str:
    """The name of a machine's state: of an enum member, or of a protobuf enum value; else its text."""
    state = getattr(data, "state", None)
    if state is None:
        return ""
    if isinstance(state, enum.Enum):
        return state.name
    if isinstance(data, Message):
        enum_type = data.DESCRIPTOR.fields_by_name["state"].enum_type
        if enum_type is not None and state in enum_type.values_by_number:
            return enum_type.values_by_number[state].name
    return str(state)


def lifecycle_of(data: object) -> Lifecycle:
    """The lifecycle of a machine's data; data that has none runs for ever."""
    lifecycle = getattr(data, "lifecycle", Lifecycle.RUNNING)
    return lifecycle if isinstance(lifecycle, Lifecycle) else Lifecycle.RUNNING
