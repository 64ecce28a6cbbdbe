"""Bosses who start workers: executions with child executions, for tests."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import ClassVar

import attrs

from hsm import (
    Environment,
    ExecutionKey,
    ImmediateKind,
    Lifecycle,
    MachineType,
    Node,
    Ref,
    Registry,
    TaskKind,
    TaskType,
    TransitionOutput,
    attrs_definition,
)
from hsm.engine import (
    ChildExecution,
    Children,
    ChildState,
    ClosePolicy,
    Engine,
)
from hsm.testing import Call as StoreCall, FakeClock
from persistence.store import SetRequest
from tests.support.databases import Database

CLOSED = ChildState.CLOSED


TERMINATE, CANCEL, ABANDON = ClosePolicy.TERMINATE, ClosePolicy.REQUEST_CANCEL, ClosePolicy.ABANDON


class State(enum.Enum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


@attrs.frozen
class Receipt:
    total: int


@attrs.frozen
class Work:
    """What a worker does after it was started."""

    type: ClassVar[TaskType] = TaskType(1, "work")

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()


@attrs.define
class Boss:
    """Starts workers and remembers what it hears of them."""

    state: State = State.OPEN
    heard: list[str] = attrs.field(factory=list[str])
    fails: bool = False

    @property
    def lifecycle(self) -> Lifecycle:
        return LIFECYCLES[self.state]

    def child_closed(
        self,
        node: Node,
        name: str,
        child: ChildExecution,
    ) -> TransitionOutput | None:
        if self.fails:
            raise RuntimeError("the boss does not listen")
        status = child.status.name if child.status is not None else "NOT STARTED"
        self.heard.append(f"{name} {status} {child.close_state}".rstrip())
        return None


@attrs.define
class Worker:
    """Works at once if it is told to; can be asked to stop."""

    state: State = State.OPEN
    works: bool = True
    total: int = 0
    started: int = 0
    workers: int = 0

    @property
    def lifecycle(self) -> Lifecycle:
        return LIFECYCLES[self.state]

    def on_start(self, node: Node) -> TransitionOutput:
        self.started += 1
        for number in range(self.workers):
            Children(node).start(str(number), Worker(works=False, workers=self.workers - 1))
        return TransitionOutput((Work(),) if self.works else ())

    def request_cancel(self, node: Node, reason: str) -> None:
        self.state = State.FAILED

    def execution_result(self) -> object:
        return Receipt(self.total)


@attrs.define
class Rock(Boss):
    """Cannot be asked for anything, and does nothing by itself."""


LIFECYCLES = {
    State.OPEN: Lifecycle.RUNNING,
    State.DONE: Lifecycle.COMPLETED,
    State.FAILED: Lifecycle.FAILED,
}


BOSS = ExecutionKey("tests", "boss")


NO_KEY = ExecutionKey("", "")


async def work(env: Environment, ref: Ref, task: Work) -> None:
    await env.update(ref, end(total=7))


def end(state: State = State.DONE, *, total: int = 0) -> Callable[[Node], None]:
    """An update that ends a boss or a worker."""

    def change(data: object) -> None:
        assert isinstance(data, Boss | Worker)
        data.state = state
        if isinstance(data, Worker):
            data.total = total

    return lambda node: node.transition(object, change)


def hire(
    *ids: str,
    data: object = None,
    policy: ClosePolicy = TERMINATE,
    key: ExecutionKey = NO_KEY,
) -> Callable[[Node], None]:
    """A transition of a boss that starts workers."""

    def change(node: Node) -> None:
        def start(_: Boss) -> None:
            for id_ in ids:
                worker = Worker() if data is None else data
                Children(node).start(id_, worker, execution=key, close_policy=policy)

        node.transition(Boss, start)

    return change


LAZY = Worker(works=False)


async def heard(engine: Engine, ref: Ref | None = None) -> list[str]:
    return await engine.read(ref or Ref(BOSS), lambda node: list(node.data(Boss).heard))


async def statuses(engine: Engine, *, boss: bool = False) -> dict[str, Lifecycle]:
    return {
        info.key.id.split("/")[-2] if "/" in info.key.id else info.key.id: info.status
        async for info in engine.list()
        if boss or info.key.id != "boss"
    }


async def child_states(engine: Engine, key: ExecutionKey = BOSS) -> list[ChildState]:
    return [info.child.state for info in await engine.children(key)]


def started_by(call: StoreCall) -> str | None:
    """The key of the row that names the run which a call of the store starts."""
    first = call.request[0] if isinstance(call.request, Sequence) and call.request else None
    return first.key if isinstance(first, SetRequest) and first.key.startswith("c/") else None


async def dead(engine: Engine) -> list[str]:
    return [f"{letter.task_type}: {letter.error}" async for letter in engine.dead_letters()]


CLOSINGS = ["complete", "fail", "terminate"]


async def close(engine: Engine, how: str, key: ExecutionKey = BOSS) -> None:
    if how == "terminate":
        await engine.terminate(key)
    else:
        await engine.update(Ref(key), end(State.DONE if how == "complete" else State.FAILED))


async def divided(clock: FakeClock, *engines: Engine) -> None:
    """Return when each of the engines runs some of the shards."""
    while not all(engine._shards.owned for engine in engines):
        clock.advance(timedelta(seconds=1))
        await asyncio.sleep(0.01)  # for two engines that nothing but the clock, and their store, drives


async def work_off(clock: FakeClock, database: Database) -> None:
    """Return when no task waits in any queue."""
    for _ in range(100):
        if not await database.queued():
            return
        clock.advance(timedelta(seconds=1))
        await asyncio.sleep(0.01)  # for two engines that nothing but the clock, and their store, drives
    raise AssertionError(f"never done: {await database.queued()}")


def family_registry() -> Registry:
    """What bosses and workers need."""
    registry = Registry()
    for number, class_ in enumerate((Boss, Worker, Rock), 1):
        registry.register_machine(attrs_definition(MachineType(number, class_.__name__), class_))
    registry.register_task(Work)
    registry.register_executor(Work, work)
    return registry
