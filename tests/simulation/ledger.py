"""The machines and tasks of the simulation: a ledger keeps a line of everything that is done to it.

    start <mark>                    the root, when it was started
    did <mark> <lines before>       an update, and how many lines it has seen
    ask <name> <class> <count>      a task was asked for, by the transition with this count
    ran <name> <count>              a task has written, in the transition with this count
    end                             tasks that are still pending make no sense any more

What a machine should hold in the end can be told from these lines alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

import attrs

from hsm import (
    ImmediateKind,
    Key,
    MachineType,
    Node,
    OutboundKind,
    Ref,
    StaleReferenceError,
    TaskKind,
    TaskType,
    TimerKind,
    TransitionOutput,
)
from hsm.machine import Lifecycle

__all__ = [
    "CHILD",
    "ROOT",
    "TASKS",
    "Alarm",
    "Call",
    "Errand",
    "ErrandSerializer",
    "First",
    "Fragile",
    "Ledger",
    "LedgerDefinition",
    "Newest",
    "Ring",
    "Soon",
    "append",
    "child_key",
    "lines_of",
]

ROOT: Final = 1
CHILD: Final = 2


@attrs.define
class Ledger:
    """A machine.

    Attributes:
        lines: what was done to it.
        closed: whether it has ended.
    """

    lines: list[str] = attrs.field(factory=list[str])
    closed: bool = False

    @property
    def lifecycle(self) -> Lifecycle:
        return Lifecycle.COMPLETED if self.closed else Lifecycle.RUNNING

    @property
    def state(self) -> str:
        return "closed" if self.closed else "open"

    def search_attributes(self) -> Mapping[str, int]:
        """What listings are filtered by."""
        return {"lines": len(self.lines)}

    def request_cancel(self, node: Node, reason: str) -> TransitionOutput | None:
        """See `Cancellable`: the reason is a mark."""
        self.lines.append(f"did {reason} {len(self.lines)}")
        return None


class LedgerDefinition:
    """The codec, which is as quick as can be."""

    data_type = Ledger

    def __init__(self, type_id: int, name: str) -> None:
        self._type = MachineType(type_id, name)

    @property
    def type(self) -> MachineType:
        return self._type

    def serialize(self, data: Ledger, /) -> bytes:
        return "\n".join(["closed" if data.closed else "open", *data.lines]).encode()

    def deserialize(self, data: bytes, /) -> Ledger:
        state, *lines = data.decode().split("\n")
        return Ledger(lines, state == "closed")


@attrs.frozen
class Errand:
    """A task.

    Attributes:
        name: used once in a simulation.
        mode: what its executor does.
        argument: a destination, or when it is due.
    """

    type: ClassVar[TaskType]
    name: str
    mode: str
    argument: Any = None

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()

    def validate(self, ref: Ref, node: Node) -> None:
        if "end" in node.data(Ledger).lines:
            raise StaleReferenceError(f"{ref} is of a machine that has ended")


class Soon(Errand):
    """Runs at once."""

    type = TaskType(11, "soon")


class First(Errand):
    """Only the first one counts while it is pending."""

    type = TaskType(12, "first")


class Call(Errand):
    """Calls out."""

    type = TaskType(13, "call")

    @property
    def kind(self) -> TaskKind:
        return OutboundKind(self.argument)


class Newest(Call):
    """Only the newest one counts."""

    type = TaskType(14, "newest")


class Alarm(Errand):
    """A timer whose executor runs outside the lock."""

    type = TaskType(15, "alarm")

    @property
    def kind(self) -> TaskKind:
        return TimerKind(self.argument)


class Ring(Alarm):
    """A timer whose executor runs under the lock."""

    type = TaskType(16, "ring")


@attrs.frozen
class Fragile:
    """Calls out, and is stale as soon as its machine has made another transition."""

    type: ClassVar[TaskType] = TaskType(17, "fragile")
    name: str
    mode: str
    argument: Any = None

    @property
    def kind(self) -> TaskKind:
        return OutboundKind(self.argument)


TASKS: Final[dict[str, type[Any]]] = {
    task.type.name: task for task in (Soon, First, Call, Newest, Alarm, Ring, Fragile)
}


class ErrandSerializer:
    """The codec of one class of tasks."""

    def __init__(self, class_: type[Any]) -> None:
        self._class = class_

    def serialize(self, task: Any, /) -> bytes:
        return f"{task.name} {task.mode}".encode()

    def deserialize(self, data: bytes, kind: TaskKind, /) -> Any:
        name, mode = data.decode().split(" ")
        argument: str | datetime | None = None
        if isinstance(kind, TimerKind):
            argument = kind.deadline
        elif isinstance(kind, OutboundKind):
            argument = kind.destination
        return self._class(name, mode, argument)


def append(line: str, *tasks: Any) -> Callable[[Node], None]:
    """An update that writes a line and asks for tasks; `{}` in it is the number of lines before."""

    def change(node: Node) -> None:
        def write(ledger: Ledger) -> TransitionOutput:
            count = node.transition_count
            ledger.lines.append(line.replace("{}", str(len(ledger.lines))).replace("#", str(count)))
            ledger.lines.extend(f"ask {task.name} {task.type.name} {count} {task.mode}" for task in tasks)
            return TransitionOutput(tasks)

        node.transition(Ledger, write)

    return change


def lines_of(node: Node) -> list[str]:
    """A copy of the lines."""
    return list(node.data(Ledger).lines)


def child_key(name: str) -> Key:
    """A key below the root."""
    return Key(CHILD, name)
