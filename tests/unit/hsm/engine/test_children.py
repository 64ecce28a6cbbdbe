"""Child executions: one is started whatever crashes, its parent hears of its end, and it ends as agreed."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import ClassVar

import attrs
import pytest

from hsm import (
    Environment,
    ExecutionKey,
    ExecutionRunningError,
    ImmediateKind,
    Key,
    Lifecycle,
    MachineType,
    Node,
    Ref,
    Registry,
    SerializationError,
    StateMachineAlreadyExistsError,
    StorageUnavailableError,
    TaskKind,
    TaskType,
    TransitionOutput,
    attrs_definition,
)
from hsm.engine import (
    CHILD_EXECUTION,
    ChildExecution,
    Children,
    ChildState,
    ClosePolicy,
    ConflictPolicy,
    Engine,
    EngineOptions,
    register_child_executions,
)
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.store import DeleteRequest, SetRequest
from tests.support.databases import Database
from tests.support.jobs import small

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


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for number, class_ in enumerate((Boss, Worker, Rock), 1):
        registry.register_machine(attrs_definition(MachineType(number, class_.__name__), class_))
    registry.register_task(Work)
    registry.register_executor(Work, work)
    return registry


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


async def test_child_is_started_and_its_parent_hears_of_its_end(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", "b"))
        await engine.drain()

        assert sorted(await heard(engine)) == ["a COMPLETED DONE", "b COMPLETED DONE"]
        results = await engine.read(boss, lambda node: Children(node).result("a", Receipt))
        assert results == Receipt(7)
        first, second = await engine.children(BOSS)
        assert (first.child.state, first.child.status) == (ChildState.CLOSED, Lifecycle.COMPLETED)
        assert first.ref.path == (Key(CHILD_EXECUTION.id, "a"),)
        assert first.child.execution != second.child.execution
        info = [info async for info in engine.list() if info.key == first.child.execution]
        assert info[0].parent == boss.execution
        assert await engine.read(Ref(first.child.execution), lambda node: node.data(Worker).started) == 1
    assert await database.queued() == []
    await database.check()


async def test_children_are_named_by_their_parent_unless_they_are_named(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        await engine.update(boss, hire("b", data=LAZY, key=ExecutionKey("elsewhere", "worker")))
        await engine.drain()
        made, named = [info.child.execution for info in await engine.children(BOSS)]
        assert made.namespace == "tests"
        assert made.id.startswith(f"boss/{boss.execution.run_id}/a/")
        assert named[:2] == ("elsewhere", "worker")
        assert await child_states(engine) == [ChildState.STARTED, ChildState.STARTED]


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("write", range(1, 12))
async def test_one_child_is_started_and_reported_once_wherever_the_process_dies(
    registry: Registry, database: Database, clock: FakeClock, write: int, carried_out: bool
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(registry, store, small(), clock=clock, run_tasks=False) as engine:
        await engine.start(BOSS, Boss())
    before = store.writes
    async with TestEngine(registry, store, small(), clock=clock) as engine:
        first = store.writes
        store.cut_off_at(first + write, carried_out=carried_out)
        with_error = asyncio.gather(engine.update(Ref(BOSS), hire("a")), return_exceptions=True)
        await with_error
        with_timeout = asyncio.create_task(store.until_cut_off())
        await asyncio.wait([with_timeout], timeout=0.2)
        with_timeout.cancel()
        store.cut_off()
    assert store.writes > before
    async with TestEngine(registry, database.store, small(), clock=clock) as engine:
        if not await engine.children(BOSS):
            await engine.update(Ref(BOSS), hire("a"))
        await engine.run_until_idle()
        assert await heard(engine) == ["a COMPLETED DONE"]
        assert await engine.count() == 2
        (child,) = await engine.children(BOSS)
        assert await engine.read(Ref(child.child.execution), lambda node: node.data(Worker).started) == 1
        assert await dead(engine) == []
    assert await database.queued() == []
    await database.check()


CLOSINGS = ["complete", "fail", "terminate"]


async def close(engine: Engine, how: str, key: ExecutionKey = BOSS) -> None:
    if how == "terminate":
        await engine.terminate(key)
    else:
        await engine.update(Ref(key), end(State.DONE if how == "complete" else State.FAILED))


@pytest.mark.parametrize("how", CLOSINGS)
async def test_children_end_with_their_parent_as_agreed(
    registry: Registry, database: Database, how: str
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("killed", data=LAZY))
        await engine.update(boss, hire("asked", data=LAZY, policy=CANCEL))
        await engine.update(boss, hire("free", data=LAZY, policy=ABANDON))
        await engine.update(boss, hire("done"))
        await engine.drain()
        await close(engine, how)
        await engine.drain()

        assert await statuses(engine) == {
            "killed": Lifecycle.TERMINATED,
            "asked": Lifecycle.FAILED,
            "free": Lifecycle.RUNNING,
            "done": Lifecycle.COMPLETED,
        }
        assert await heard(engine) == ["done COMPLETED DONE"]
        assert await child_states(engine) == [CLOSED, CLOSED, ChildState.STARTED, CLOSED]
        expected = {"complete": Lifecycle.COMPLETED, "fail": Lifecycle.FAILED}
        assert (await engine.describe(BOSS)).info.status is expected.get(how, Lifecycle.TERMINATED)
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_child_of_a_parent_that_has_closed_already_ends_as_agreed(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=end())
        await engine.update(boss, hire("killed", data=LAZY))
        await engine.update(boss, hire("asked", data=LAZY, policy=CANCEL))
        await engine.update(boss, hire("free", data=LAZY, policy=ABANDON))
        await engine.drain()
        assert await statuses(engine) == {
            "killed": Lifecycle.TERMINATED,
            "asked": Lifecycle.FAILED,
            "free": Lifecycle.RUNNING,
        }
        assert await heard(engine) == []
    await database.check()


@pytest.mark.parametrize("policy", [TERMINATE, CANCEL, ABANDON])
@pytest.mark.parametrize("how", CLOSINGS)
async def test_child_that_was_not_started_yet_does_not_outlive_its_parent(
    registry: Registry, database: Database, how: str, policy: ClosePolicy
) -> None:
    async with TestEngine(registry, database.store, run_tasks=False) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", policy=policy, data=LAZY))
        await close(engine, how)
    async with TestEngine(registry, database.store) as engine:
        await engine.run_until_idle()
        found = await statuses(engine)
        if policy is TERMINATE:
            assert found == {"a": Lifecycle.TERMINATED}
        elif policy is CANCEL:
            assert found == {"a": Lifecycle.FAILED}
        else:
            # What nobody has started yet when the parent is terminated is not abandoned: it is not there.
            assert found == ({} if how == "terminate" else {"a": Lifecycle.RUNNING})
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_parent_that_is_terminated_while_its_child_is_being_started(
    registry: Registry, database: Database
) -> None:
    """The task that starts it is on its way, and comes too late."""
    store = FaultyStore(database.store)
    async with TestEngine(registry, store) as engine:
        await engine.start(BOSS, Boss())

        async def terminate_first(call: StoreCall) -> None:
            if (started_by(call) or "").startswith("c/tests/boss%2F"):
                store.before = None
                await engine.terminate(BOSS)
                while (await statuses(engine)).get("a") is not Lifecycle.TERMINATED:  # noqa: ASYNC110 - by a process that tells nobody
                    await asyncio.sleep(0)

        store.before = terminate_first
        await engine.update(Ref(BOSS), hire("a"))
        await engine.run_until_idle()
        assert await statuses(engine) == {"a": Lifecycle.TERMINATED}
        assert await engine.count() == 2
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_termination_goes_down_all_generations(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=Worker(works=False, workers=3)))
        await engine.drain()
        assert await engine.count(status=Lifecycle.RUNNING) == 1 + 1 + 3 + 3 * 2 + 3 * 2 * 1
        await engine.terminate(BOSS)
        await engine.drain()
        assert await engine.count(status=Lifecycle.RUNNING) == 0
        assert await engine.count(status=Lifecycle.TERMINATED) == 17
    assert await database.queued() == []


async def test_parent_hears_that_its_child_was_terminated(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        await engine.drain()
        (info,) = await engine.children(BOSS)
        await engine.terminate(info.child.execution, "enough")
        await engine.drain()
        assert await heard(engine) == ["a TERMINATED OPEN"]
        (info,) = await engine.children(BOSS)
        assert info.child.error == "enough"
        with pytest.raises(SerializationError, match="has left no result"):
            info.child.result(Receipt)
        assert (await engine.describe(info.child.execution)).info.status is Lifecycle.TERMINATED
        # Its own task has run, and what it waits for is told as it is.
        assert [
            task for node in (await engine.describe(info.child.execution)).nodes for task in node.tasks
        ] == []
    assert await database.queued() == []
    await database.check()


async def test_name_that_is_taken_is_no_child(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        taken = ExecutionKey("tests", "taken")
        await engine.start(taken, Worker(works=False))
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", key=taken))
        await engine.drain()
        assert await heard(engine) == ["a NOT STARTED"]
        (info,) = await engine.children(BOSS)
        assert "was started already" in info.child.error
        # It is not ours to end.
        await engine.terminate(boss.execution)
        await engine.drain()
        assert (await engine.describe(taken)).info.status is Lifecycle.RUNNING


@pytest.mark.parametrize("dies", [False, True])
async def test_child_that_is_started_when_its_parent_was_told_otherwise_ends(
    registry: Registry, database: Database, clock: FakeClock, dies: bool
) -> None:
    """A process is stopped before it starts a child, another one finds the name taken, and then it is free."""
    taken = ExecutionKey("tests", "taken")
    store, standing_still = FaultyStore(database.store), FakeClock(clock.now())
    stopped, continued = asyncio.Event(), asyncio.Event()

    async def stop(call: StoreCall) -> None:
        if started_by(call) == "c/tests/taken":
            store.before = None
            if dies:
                store.cut_off_at(call.write, carried_out=True)
            stopped.set()
            await continued.wait()

    async with TestEngine(registry, store, small(), clock=standing_still) as engine:
        store.before = stop
        await engine.start(BOSS, Boss(), on_start=hire("a", key=taken, data=LAZY))
        await stopped.wait()
        # It stands still for so long that its lease runs out.
        async for item in database.store.scan("exec", "m/", "m0"):
            await database.store.delete(DeleteRequest(partition="exec", key=item.key))
        async with TestEngine(registry, database.store, small(), clock=clock) as other:
            await other.start(taken, Worker(works=False))
            await other.skip(timedelta(hours=12))
            assert await heard(other) == ["a NOT STARTED"]
            await other.delete(taken, force=True)
        continued.set()
        if dies:
            await store.until_cut_off()
        else:
            await engine.skip(timedelta(hours=24))
    async with TestEngine(registry, database.store, small(), clock=clock) as engine:
        await engine.skip(timedelta(hours=24))
        assert await heard(engine) == ["a NOT STARTED"]
        child = (await engine.describe(taken)).info
        assert child.status is Lifecycle.TERMINATED
        assert child.close_reason == "its parent tests/boss does not wait for it"
        assert await child_states(engine) == [CLOSED]
        assert await dead(engine) == []
    assert await database.queued() == []
    await database.check()


async def test_child_that_has_ended_with_its_parent_is_not_started_again(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    """The end of another child has to be tried again, and again, when this one is long forgotten."""
    options = small(retention=timedelta(seconds=1), poll_interval=timedelta(seconds=1), max_attempts=100)
    store = FaultyStore(database.store)
    async with TestEngine(registry, database.store, options, clock=clock, run_tasks=False) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY, policy=CANCEL))
        await engine.update(boss, hire("b", data=LAZY, policy=CANCEL))
        await engine.terminate(BOSS)
    begun: list[str] = []

    async def refuse_b(call: StoreCall) -> None:
        name = started_by(call)
        if name is not None:
            begun.append("a" if "%2Fa%2F" in name else "b")
            if 0 < begun.count("b") < 5:
                raise RuntimeError("b is not to be started yet")

    store.before = refuse_b
    async with TestEngine(registry, store, options, clock=clock) as engine:
        await engine.skip(timedelta(hours=4))
        assert sorted(begun) == ["a", *"bbbbb"]
        assert await engine.count() == 0
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_id_of_a_child_is_used_once_until_its_machine_is_deleted(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        with pytest.raises(StateMachineAlreadyExistsError):
            await engine.update(boss, hire("a"))
        await engine.drain()
        (first,) = await engine.children(BOSS)
        await engine.update(boss, lambda node: node.delete_child(Key(CHILD_EXECUTION.id, "a")))
        await engine.update(boss, hire("a"))
        await engine.drain()
        assert await heard(engine) == ["a COMPLETED DONE"]

        # The first one was let go of: it goes on, and nobody is told of its end.
        await engine.update(Ref(first.child.execution), end(State.FAILED))
        await engine.drain()
        assert await heard(engine) == ["a COMPLETED DONE"]
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_child_ends_after_its_parent_is_gone(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY, policy=ABANDON))
        await engine.drain()
        (info,) = await engine.children(BOSS)
        await engine.delete(BOSS, force=True)
        await engine.update(Ref(info.child.execution), end())
        await engine.run_until_idle()
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_child_that_cannot_be_asked_to_end_is_told_of_and_keeps_no_other(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("rock", data=Rock(), policy=CANCEL))
        await engine.update(boss, hire("a", data=LAZY))
        await engine.drain()
        await engine.terminate(BOSS)
        await engine.run_until_idle()
        assert await statuses(engine) == {"rock": Lifecycle.RUNNING, "a": Lifecycle.TERMINATED}
        (letter,) = await dead(engine)
        assert letter.startswith("hsm.EndChildren: TerminalError: child execution tests/boss/")


async def test_child_is_kept_until_its_parent_has_heard(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    options = small(retention=timedelta(hours=1), poll_interval=timedelta(minutes=1))
    async with TestEngine(registry, database.store, options, clock=clock) as engine:
        boss = await engine.start(BOSS, Boss(fails=True), on_start=hire("a"))
        await engine.drain()
        (info,) = await engine.children(BOSS)
        assert info.child.state is ChildState.STARTED
        with pytest.raises(ExecutionRunningError, match="has parent or children to tell"):
            await engine.delete(info.child.execution)
        await engine.skip(timedelta(hours=4))
        assert await engine.count() == 2
        (letter,) = [letter async for letter in engine.dead_letters()]

        def listen(data: Boss) -> None:
            data.fails = False

        await engine.update(boss, lambda node: node.transition(Boss, listen))
        await engine.replay(letter)
        await engine.drain()
        assert await heard(engine) == ["a COMPLETED DONE"]
        await engine.skip(timedelta(minutes=2))
        assert await engine.count() == 1
    assert await database.keys("e/tests/boss%2F", "x/") == []


async def test_children_and_their_ends_are_part_of_the_history(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", "b"), history=True)
        await engine.drain()
        await close(engine, "terminate")
        await engine.drain()
        entries = [entry async for entry in engine.history(BOSS)]
        trees = [await engine.tree_at(BOSS, entry.version.transition_count) for entry in entries]
        states = [[node.data(ChildExecution).state for node in Children(tree).nodes()] for tree in trees]
    assert states[0] == 2 * [ChildState.SCHEDULED]
    assert states[-1] == 2 * [CLOSED]
    assert sorted(trees[-1].data(Boss).heard) == ["a COMPLETED DONE", "b COMPLETED DONE"]
    tasks = [task for entry in entries for task in entry.tasks]
    # Two starts, and one end of all children that are left.
    assert len(tasks) == len(set(tasks)) == 3


async def test_dead_end_of_children_is_replayed_after_a_termination(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("rock", data=Rock(), policy=CANCEL))
        await engine.drain()
        await engine.terminate(BOSS)
        await engine.run_until_idle()
        with pytest.raises(ExecutionRunningError, match="has parent or children to tell"):
            await engine.delete(BOSS)
        (waiting,) = [task for node in (await engine.describe(BOSS)).nodes for task in node.tasks]
        assert (waiting.name, waiting.last_error[:14]) == ("hsm.EndChildren", "dead-lettered:")
        (letter,) = [letter async for letter in engine.dead_letters()]
        await engine.update(Ref((await engine.children(BOSS))[0].child.execution), end())
        await engine.replay(letter)
        await engine.run_until_idle()
        assert await dead(engine) == []
        await engine.delete(BOSS)
    assert await database.queued() == []


async def test_refresh_starts_no_second_child(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss())
        await engine.pause(BOSS)
        await engine.update(Ref(BOSS), hire("a", data=LAZY))
        for _ in range(2):
            await engine.drain()
            await engine.refresh(BOSS)
        await engine.resume(BOSS)
        await engine.run_until_idle()
        assert await child_states(engine) == [ChildState.STARTED]
        assert await engine.count() == 2
    assert await database.queued() == []


async def test_lost_rows_of_families_are_written_anew(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store, run_tasks=False) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        for key in await database.queued():
            await database.remove(key)
    async with TestEngine(registry, database.store) as engine:
        assert await engine.repair() == 1
        await engine.drain()
        assert await child_states(engine) == [ChildState.STARTED]
    async with TestEngine(registry, database.store, run_tasks=False) as engine:
        await engine.terminate(BOSS)
        (key,) = await database.queued()
        await database.remove(key)
    async with TestEngine(registry, database.store) as engine:
        assert await engine.repair() == 1
        await engine.drain()
        assert await statuses(engine) == {"a": Lifecycle.TERMINATED}


async def divided(clock: FakeClock, *engines: Engine) -> None:
    """Return when each of the engines runs some of the shards."""
    while not all(engine._shards.owned for engine in engines):
        clock.advance(timedelta(seconds=1))
        await asyncio.sleep(0.01)


async def test_lost_rows_of_a_child_are_written_anew(registry: Registry, database: Database) -> None:
    """Those of the tasks by which it makes sure of its parent, and tells of its end."""
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss())
        await engine.pause(BOSS)
        await engine.update(Ref(BOSS), hire("a", data=LAZY))
        await engine.drain()
    store = FaultyStore(database.store)
    async with TestEngine(registry, store) as engine:

        async def cut_off(call: StoreCall) -> None:
            if started_by(call):
                store.cut_off_at(call.write, carried_out=True)

        store.before = cut_off
        with contextlib.suppress(StorageUnavailableError):
            await engine.resume(BOSS)
        await store.until_cut_off()
    for lost in ("hsm.ConfirmStart", "hsm.ReportClose"):
        async with TestEngine(registry, database.store, run_tasks=False) as engine:
            (child,) = [info.key async for info in engine.list() if info.key.id != "boss"]
            if lost == "hsm.ReportClose":
                await engine.update(Ref(child), end())
            (root,) = (await engine.describe(child)).nodes
            assert [task.name for task in root.tasks] == [lost]
            await database.remove(next(key for key in await database.queued() if root.tasks[0].id in key))
        async with TestEngine(registry, database.store) as engine:
            assert await engine.repair() == 1
            await engine.run_until_idle()
    assert await database.queued() == []
    await database.check()
    async with TestEngine(registry, database.store) as engine:
        assert await heard(engine) == ["a COMPLETED DONE"]


async def test_replaced_runs_are_told_of_like_others_that_end(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        named = ExecutionKey("tests", "worker")
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY, key=named))
        await engine.drain()
        await engine.start(named, LAZY, conflict=ConflictPolicy.TERMINATE_EXISTING)
        await engine.drain()
        assert await heard(engine) == ["a TERMINATED OPEN"]

        await engine.update(Ref(BOSS), hire("b", data=LAZY))
        await engine.drain()
        await engine.start(BOSS, Boss(), conflict=ConflictPolicy.TERMINATE_EXISTING)
        await engine.drain()
        assert await engine.count(status=Lifecycle.TERMINATED) == 3
        assert (await engine.describe(named)).info.status is Lifecycle.RUNNING
        assert await heard(engine) == []
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_families_are_spread_over_processes_and_shards(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    options = EngineOptions(shard_count=8)
    async with (
        TestEngine(registry, database.store, options, clock=clock) as one,
        TestEngine(registry, await database.open(), options, clock=clock) as other,
    ):
        await divided(clock, one, other)
        names = [str(number) for number in range(30)]
        await one.start(BOSS, Boss(), on_start=hire(*names))
        for _ in range(100):
            if len(await heard(one)) == 30 and not await database.queued():
                break
            clock.advance(timedelta(seconds=1))
            await asyncio.sleep(0.01)
        assert sorted(await heard(other)) == sorted(f"{name} COMPLETED DONE" for name in names)
        assert await one.count() == 31
        assert await database.queued() == []


async def test_parent_knows_of_its_children_also_where_an_older_tree_of_it_is_in_memory(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    options = EngineOptions(shard_count=8)
    async with (
        TestEngine(registry, database.store, options, clock=clock) as one,
        TestEngine(registry, await database.open(), options, clock=clock) as other,
    ):
        await divided(clock, one, other)
        for engine in (one, other):
            await engine.start(BOSS, Boss(), request_id="once")
            await engine.read(Ref(BOSS), lambda _: None)
        # Some of the children are run by the other one, which has not seen the parent since.
        owner = one if one._executions.partition(BOSS) in one._shards.loader else other
        await owner.update(Ref(BOSS), hire(*map(str, range(12)), data=LAZY))
        for _ in range(100):
            if not await database.queued():
                break
            clock.advance(timedelta(seconds=1))
            await asyncio.sleep(0.01)
        assert await database.queued() == []
        assert await child_states(owner) == 12 * [ChildState.STARTED]


async def test_parent_that_has_closed_is_told_and_not_disturbed(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(fails=True), on_start=hire("a", data=LAZY, policy=ABANDON))
        await engine.drain()
        await close(engine, "complete")
        (info,) = await engine.children(BOSS)
        await engine.update(Ref(info.child.execution), end())
        await engine.drain()
        assert await child_states(engine) == [CLOSED]
        assert await heard(engine) == []
        assert await dead(engine) == []


def test_trees_without_an_engine_have_children_too(registry: Registry) -> None:
    for _ in range(2):
        register_child_executions(registry)
    root = Node.new_root(registry, 1, Boss())
    hire("a", "b")(root)
    children = Children(root)
    assert list(children) == ["a", "b"]
    again = Node.from_proto(registry, 1, root.to_proto())
    assert Children(again).data("a") == children.data("a")
    assert children.data("a").state is ChildState.SCHEDULED
    closed = ChildExecution(
        ExecutionKey("a", "b", "c"), 2, b"x", CANCEL, ChildState.CLOSED, Lifecycle.FAILED, "GONE", "why", b""
    )
    children.add("c", closed)
    assert Children(Node.from_proto(registry, 1, root.to_proto())).data("c") == closed
