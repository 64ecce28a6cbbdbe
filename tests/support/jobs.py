"""A world for tests of the engine: one machine, a task of each kind, and executors that tests choose."""

from __future__ import annotations

import enum
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

import attrs

from hsm import (
    Environment,
    ExecutionKey,
    ImmediateKind,
    Key,
    MachineType,
    Node,
    OutboundKind,
    Ref,
    Registry,
    Singleton,
    StaleReferenceError,
    Task,
    TaskKind,
    TaskType,
    TimerKind,
    TransitionOutput,
    attrs_definition,
)
from hsm.engine import Engine, EngineOptions
from hsm.machine import Lifecycle

JOB: Final = 1
STEP: Final = 2


class State(enum.Enum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


_LIFECYCLES: Final = {State.DONE: Lifecycle.COMPLETED, State.FAILED: Lifecycle.FAILED}


@attrs.define
class Job:
    """Remembers what was done to it; the same class is the root and, as another type, its steps."""

    state: State = State.OPEN
    log: list[str] = attrs.field(factory=list)

    @property
    def lifecycle(self) -> Lifecycle:
        return _LIFECYCLES.get(self.state, Lifecycle.RUNNING)


@attrs.define
class Step(Job):
    """A child of a job, or of another step."""


@attrs.frozen
class Call:
    """Calls out. Stale as soon as its machine has moved on."""

    type: ClassVar[TaskType] = TaskType(11, "call")
    name: str
    destination: str = "there"

    @property
    def kind(self) -> TaskKind:
        return OutboundKind(self.destination)


@attrs.frozen
class Lasting:
    """Calls out, and stays valid until its machine's log holds `end`."""

    type: ClassVar[TaskType] = TaskType(12, "lasting")
    name: str
    end: str = "end"
    destination: str = "there"

    @property
    def kind(self) -> TaskKind:
        return OutboundKind(self.destination)

    def validate(self, ref: Ref, node: Node) -> None:
        stale_after(self.end, ref, node)


@attrs.frozen
class Soon:
    """Runs at once, without a destination."""

    type: ClassVar[TaskType] = TaskType(13, "soon")
    name: str
    end: str = "end"

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()

    def validate(self, ref: Ref, node: Node) -> None:
        stale_after(self.end, ref, node)


@attrs.frozen
class Alarm:
    """A timer whose executor runs outside the lock."""

    type: ClassVar[TaskType] = TaskType(14, "alarm")
    name: str
    deadline: datetime
    end: str = "end"

    @property
    def kind(self) -> TaskKind:
        return TimerKind(self.deadline)

    def validate(self, ref: Ref, node: Node) -> None:
        stale_after(self.end, ref, node)


@attrs.frozen
class Ring:
    """A timer whose executor runs under the lock."""

    type: ClassVar[TaskType] = TaskType(15, "ring")
    name: str
    deadline: datetime
    end: str = "end"

    @property
    def kind(self) -> TaskKind:
        return TimerKind(self.deadline)

    def validate(self, ref: Ref, node: Node) -> None:
        stale_after(self.end, ref, node)


@attrs.frozen
class Newest(Lasting):
    """Only the newest of them counts."""

    type: ClassVar[TaskType] = TaskType(16, "newest")


@attrs.frozen
class First(Lasting):
    """Only the first of them counts."""

    type: ClassVar[TaskType] = TaskType(17, "first")


def stale_after(end: str, ref: Ref, node: Node) -> None:
    if end in node.data(Job).log:
        raise StaleReferenceError(f"{ref} is over")


TASKS: Final[tuple[type[Any], ...]] = (Call, Lasting, Soon, Alarm, Ring, Newest, First)
_SINGLETONS: Final = {Newest: Singleton.REPLACE, First: Singleton.IGNORE}

Handler = Callable[[Environment, Ref, Any], Awaitable[None]]
TimerHandler = Callable[[Environment, Node, Ring], None]


@attrs.frozen
class Run:
    """One run of an executor."""

    name: str
    attempt: int
    time: datetime


class World:
    """A registry, what its executors do, and what they did.

    Unless told otherwise with `on`, the executor of a task notes the task's name in its machine's log.
    """

    def __init__(self, *, without: tuple[type[Any], ...] = (), timeout: timedelta | None = None) -> None:
        self.registry = Registry()
        self.runs: list[Run] = []
        self.ring: TimerHandler = lambda env, node, task: node.transition(Job, write(task.name))
        self._handlers: dict[type[Any], Handler] = {}
        for machine_type, class_ in ((MachineType(JOB, "job"), Job), (MachineType(STEP, "step"), Step)):
            if class_ not in without:
                self.registry.register_machine(attrs_definition(machine_type, class_))
        for task in TASKS:
            if task in without:
                continue
            self.registry.register_task(task, singleton=_SINGLETONS.get(task), timeout=timeout)
            if task is Ring:
                self.registry.register_timer_executor(Ring, self._ring)
            else:
                self.registry.register_executor(task, self._run)

    def on(self, task: type[Any], handler: Handler) -> None:
        """Let `handler` run tasks of a type from now on."""
        self._handlers[task] = handler

    def names(self) -> list[str]:
        """The names of the tasks that have run, in order."""
        return [run.name for run in self.runs]

    async def _run(self, env: Environment, ref: Ref, task: Any) -> None:
        self.runs.append(Run(task.name, ref.attempt, env.now()))
        await self._handlers.get(type(task), noted)(env, ref, task)

    def _ring(self, env: Environment, node: Node, task: Ring) -> None:
        self.runs.append(Run(task.name, 0, env.now()))
        self.ring(env, node, task)


async def noted(env: Environment, ref: Ref, task: Any) -> None:
    """Note the task's name in its machine's log."""
    await env.update(ref, note(task.name))


async def idle(env: Environment, ref: Ref, task: Any) -> None:
    """Do nothing."""


def failing(*errors: BaseException | None) -> Handler:
    """Raise these, one each time, the last for ever; None is to do as usual."""
    left = list(errors)

    async def fail(env: Environment, ref: Ref, task: Any) -> None:
        error = left.pop(0) if len(left) > 1 else left[0]
        if error is not None:
            raise error
        await noted(env, ref, task)

    return fail


def write(text: str, *tasks: Task) -> Callable[[Job], TransitionOutput]:
    """A transition function that writes into the log and asks for tasks."""

    def change(job: Job) -> TransitionOutput:
        job.log.append(text)
        return TransitionOutput(tasks)

    return change


def note(text: str, *tasks: Task) -> Callable[[Node], None]:
    """An update that writes into the node's log and asks for tasks."""
    return lambda node: node.transition(Job, write(text, *tasks))


def ask(*tasks: Task) -> Callable[[Node], None]:
    """An update that asks for tasks, and nothing else."""
    return lambda node: node.transition(Job, lambda _: TransitionOutput(tasks))


def add_child(id_: str) -> Callable[[Node], None]:
    """An update that adds a step."""

    def change(node: Node) -> None:
        node.add_child(step(id_), Step())

    return change


def finish(state: State = State.DONE) -> Callable[[Node], None]:
    """An update that sets the state."""

    def change(job: Job) -> None:
        job.state = state

    return lambda node: node.transition(Job, change)


def log(node: Node) -> list[str]:
    """A copy of the node's log, for `read`."""
    return list(node.data(Job).log)


def step(id_: str) -> Key:
    return Key(STEP, id_)


def job(id_: str = "job") -> ExecutionKey:
    return ExecutionKey("tests", id_)


async def started(engine: Engine, id_: str = "job", *tasks: Task) -> Ref:
    """A new execution whose root asks for tasks, if any are given."""
    return await engine.start(job(id_), Job(), on_start=ask(*tasks) if tasks else None)


async def pending(engine: Engine, ref: Ref) -> list[str]:
    """The names of the types of all pending tasks of an execution, parents first."""
    tree = await engine.describe(ref.execution)
    return [task.name for node in tree.nodes for task in node.tasks]


def small(**changes: Any) -> EngineOptions:
    """Options for tests: few shards, a poll and a sign of life an hour, no surprise by chance."""
    plain = EngineOptions(
        shard_count=2, poll_interval=timedelta(hours=1), lease_seconds=3 * 3600, random=random.Random(1)
    )
    return attrs.evolve(plain, **changes)
