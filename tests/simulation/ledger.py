"""The machines and tasks of the simulation: a ledger keeps a line of everything that is done to it.

    start <mark>                    the root, when it was started
    did <mark> <lines before>       an update, and how many lines it has seen
    ask <name> <class> <count>      a task was asked for, by the transition with this count
    ran <name> <count>              a task has written, in the transition with this count
    end                             tasks that are still pending make no sense any more
    plan <name> <class>             a child execution asks for this task when it is started
    hire <id>                       a child execution was asked for
    heard <id> <run>                it has ended, or could not be started
    told to end                     a parent has closed, and wants its child to close, too

What a machine should hold in the end can be told from these lines alone, and so can the tasks that it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from hsm.engine import ChildExecution, Children, ClosePolicy
from hsm.machine import Lifecycle
from hsm.ref import ExecutionKey

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
    "finish",
    "hire",
    "lines_of",
    "plan",
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
        """See `Cancellable`: the reason is a client's mark, or a parent's."""
        if " " in reason:
            self.lines.append("told to end")
            self.closed = True
        else:
            self.lines.append(f"did {reason} {len(self.lines)}")
        return None

    def regenerate_tasks(self, node: Node) -> list[Any]:
        """See `TaskRegenerator`: what was asked for, has not written, and was not displaced by another."""
        if "end" in self.lines:
            return []
        return [
            _task(words)
            for words in _pending(self.lines)
            if words[1] != Fragile.type.name or int(words[2]) == node.transition_count
        ]

    def on_start(self, node: Node) -> TransitionOutput:
        """See `Startable`: all that was planned."""
        planned = [_task(line.split(" ")[1:]) for line in self.lines if line.startswith("plan ")]
        mark = self.lines[0].split(" ")[1]
        self.lines.append(f"did {mark}b {len(self.lines)} -")
        self.lines.extend(_asked(task, node.transition_count) for task in planned)
        return TransitionOutput(tuple(planned))

    def child_closed(self, node: Node, name: str, child: ChildExecution, /) -> TransitionOutput:
        """See `ChildObserver`: sometimes it is a reason to do something."""
        task = Soon(f"t{name}h", "ok")
        self.lines.append(f"heard {name} {child.execution.run_id or '-'}")
        self.lines.append(_asked(task, node.transition_count))
        return TransitionOutput((task,))

    def execution_result(self) -> int:
        """See `HasExecutionResult`."""
        return len(self.lines)


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
            ledger.lines.extend(_asked(task, count) for task in tasks)
            return TransitionOutput(tasks)

        node.transition(Ledger, write)

    return change


def finish(name: str) -> Callable[[Node], None]:
    """An update with which a task ends the execution of its machine."""

    def change(root: Node) -> None:
        def write(ledger: Ledger) -> None:
            ledger.lines.append(f"ran {name} {root.transition_count}")
            ledger.closed = True

        root.transition(Ledger, write)

    return change


def hire(mark: str, child: Ledger, policy: ClosePolicy, name: ExecutionKey) -> Callable[[Node], None]:
    """An update by which a machine has a child execution started."""

    def change(node: Node) -> None:
        append(f"hire {mark}")(node)
        Children(node).start(
            mark,
            Ledger(list(child.lines)),
            execution=name,
            machine_type=MachineType(ROOT, "root"),
            close_policy=policy,
        )

    return change


def plan(task: Any) -> str:
    """The line of a task that a child execution asks for when it is started."""
    return _asked(task, 0).replace("ask", "plan", 1)


def _asked(task: Any, count: int) -> str:
    argument = task.argument
    words = argument.isoformat() if isinstance(argument, datetime) else argument or "-"
    return f"ask {task.name} {task.type.name} {count} {task.mode} {words}"


def _task(words: list[str]) -> Any:
    """The task of a line, without its verb."""
    name, kind, _, mode, argument = words
    class_ = TASKS[kind]
    if issubclass(class_, Alarm):
        return class_(name, mode, datetime.fromisoformat(argument))
    return class_(name, mode, None if argument == "-" else argument)


def _pending(lines: list[str]) -> Iterator[list[str]]:
    """The words of all tasks that were asked for and may still wait."""
    asked: dict[str, list[str]] = {}
    first = newest = ""
    for line in lines:
        verb, *words = line.split(" ")
        name = words[0] if words else ""
        if verb == "ran":
            asked.pop(name, None)
            first = "" if name == first else first
        elif verb == "ask":
            if words[1] == Newest.type.name:
                asked.pop(newest, None)
                newest = name
            elif words[1] == First.type.name:
                if first:
                    continue
                first = name
            asked[name] = words
    yield from asked.values()


def lines_of(node: Node) -> list[str]:
    """A copy of the lines."""
    return list(node.data(Ledger).lines)


def child_key(name: str) -> Key:
    """A key below the root."""
    return Key(CHILD, name)
