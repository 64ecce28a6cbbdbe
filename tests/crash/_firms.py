"""Firms: executions that are called and that start child executions, each once, whoever is killed meanwhile.

A firm hires a fixed number of clerks, one in each call. Half of the firms close when they have heard of all their
clerks; the others are closed by a last call while clerks still work, and those end with them.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Final

import attrs

from hsm import (
    Environment,
    ExecutionKey,
    ImmediateKind,
    MachineType,
    Node,
    Ref,
    Registry,
    TaskKind,
    TaskType,
    TransitionOutput,
    attrs_definition,
)
from hsm.engine import ChildExecution, Children, Engine, ExecutionInfo, method
from hsm.machine import Lifecycle

__all__ = ["CLERKS", "FIRMS", "check_firms", "keep_hiring", "register_firms"]

FIRMS: Final = "firms"
CLERKS: Final = "clerks"
HIRES: Final = 12


class State(enum.Enum):
    OPEN = "open"
    DONE = "done"


@attrs.define
class _Open:
    state: State = State.OPEN

    @property
    def lifecycle(self) -> Lifecycle:
        return Lifecycle.RUNNING if self.state is State.OPEN else Lifecycle.COMPLETED


@attrs.define
class Firm(_Open):
    """Remembers whom it has hired, and of whose end it has heard."""

    name: str = ""
    hired: list[str] = attrs.field(factory=list[str])
    heard: list[str] = attrs.field(factory=list[str])

    def child_closed(self, node: Node, name: str, child: ChildExecution) -> None:
        self.heard.append(f"{name} was not started" if child.status is None else name)
        if len(self.heard) == HIRES:
            self.state = State.DONE


@attrs.define
class Clerk(_Open):
    """Counts how often it was started, and how often it has worked."""

    starts: int = 0
    works: int = 0

    def on_start(self, node: Node) -> TransitionOutput:
        self.starts += 1
        return TransitionOutput((Work(),))


@attrs.frozen
class Work:
    type: ClassVar[TaskType] = TaskType(31, "work")

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()


@method(int)
def hire(firm: Node, name: str) -> int:
    """How many clerks there are, with this one."""

    def change(data: Firm) -> None:
        data.hired.append(name)
        Children(firm).start(name, Clerk(), execution=ExecutionKey(CLERKS, f"{data.name}-{name}"))

    firm.transition(Firm, change)
    return len(firm.data(Firm).hired)


@method(int)
def close(firm: Node) -> int:
    """How many clerks it has not heard of."""

    def change(data: Firm) -> None:
        data.state = State.DONE

    firm.transition(Firm, change)
    return len(firm.data(Firm).hired) - len(firm.data(Firm).heard)


async def _work(env: Environment, ref: Ref, _: Work) -> None:
    def change(clerk: Clerk) -> None:
        clerk.works += 1
        clerk.state = State.DONE

    await env.update(ref, lambda node: node.transition(Clerk, change))


async def keep_hiring(engine: Engine, client: str, say: Callable[[str], None]) -> None:
    """Found one firm after the other, beginning with the last that there is, and say who was hired."""
    names = [info.key.id.partition(".") async for info in engine.list(namespace=FIRMS)]
    generation = max([int(number) for owner, _, number in names if owner == client], default=0)
    while True:
        name = f"{client}.{generation}"
        firm = await engine.start(ExecutionKey(FIRMS, name), Firm(name=name), request_id=name)
        hired = await engine.read(firm, lambda node: len(node.data(Firm).hired))
        # Nobody knows whether the last answer has arrived: that request is made again.
        for number in range(max(hired, 1), HIRES + 1):
            answer = await engine.call(firm, hire(str(number)), request_id=str(number))
            assert answer == number, f"the call {number} of {name} was answered {answer}"
            say(f"{name} {number}")
        if _is_closed_early(name):
            await engine.call(firm, close(), request_id="close")
        await engine.wait(firm, lambda node: node.data(Firm).state is State.DONE)
        generation += 1


def _is_closed_early(name: str) -> bool:
    return int(name.partition(".")[2]) % 2 == 1


async def check_firms(engine: Engine, acknowledged: Counter[str]) -> int:
    """Compare firms and clerks, when all tasks have run, with what was said; the calls that are told by it.

    Closed ones are deleted, so that the next check has not to look at them.
    """
    clerks: dict[str, list[ExecutionInfo]] = {}
    async for info in engine.list(namespace=CLERKS):
        clerks.setdefault(info.key.id, []).append(info)
    firms = [info async for info in engine.list(namespace=FIRMS)]
    calls = 0
    for info in firms:
        name = info.key.id
        firm = await engine.read(Ref(info.key), lambda node: attrs.evolve(node.data(Firm)))
        expected = [str(number) for number in range(1, len(firm.hired) + 1)]
        assert firm.hired == expected, f"calls of {name} are lost or carried out twice: {firm.hired}"
        told = acknowledged.pop(name, 0)
        assert len(firm.hired) >= told, f"{name}: {told} answers were told, {len(firm.hired)} are hired"
        if not (firm.state is State.DONE and _is_closed_early(name)):
            assert sorted(firm.heard) == sorted(expected), f"{name} has heard of {firm.heard}"
        assert (Counter(firm.heard) - Counter(expected)).total() == 0, f"{name} has heard of {firm.heard}"
        for number in expected:
            runs = clerks.pop(f"{name}-{number}", [])
            assert len(runs) == 1, f"clerk {number} of {name} was started {len(runs)} times"
            await _check_clerk(engine, runs[0], firm)
        if firm.state is State.DONE:
            calls += len(expected)
            await engine.delete(info.key)
        else:
            acknowledged[name] = told
    lost = {name for name in acknowledged if "." in name} - {info.key.id for info in firms}
    assert not lost, f"firms are lost: {sorted(lost)}"
    assert not clerks, f"nobody has hired {sorted(clerks)}"
    return calls


async def _check_clerk(engine: Engine, info: ExecutionInfo, firm: Firm) -> None:
    clerk = await engine.read(Ref(info.key), lambda node: attrs.evolve(node.data(Clerk)))
    if info.status is Lifecycle.TERMINATED:
        assert firm.state is State.DONE, f"clerk {info.key.id} has ended before its firm"
        assert clerk.starts <= 1
        assert clerk.works == 0
    else:
        assert info.status is Lifecycle.COMPLETED, f"clerk {info.key.id} is {info.status}"
        assert (clerk.starts, clerk.works) == (1, 1), f"clerk {info.key.id}: {clerk}"
    if firm.state is State.DONE:
        await engine.delete(info.key)


def register_firms(registry: Registry) -> None:
    """Make firms and clerks known."""
    registry.register_machine(attrs_definition(MachineType(31, "firm"), Firm))
    registry.register_machine(attrs_definition(MachineType(32, "clerk"), Clerk))
    registry.register_task(Work)
    registry.register_executor(Work, _work)
