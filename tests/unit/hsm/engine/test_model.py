"""The engine against a plain model: random updates, tasks, crashes and restarts must leave both the same.

Two engines, as two processes, work on one store. At any write either may be cut off from the store, before or
after the write is carried out, and is replaced by a new one. What the store holds in the end must be what the
updates that went through say: the same machines in the same order, each update there once or not at all, and
each task done once, waiting, or dead.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeAlias

import attrs
from hypothesis import given, settings, strategies as st

from hsm import Environment, Key, Node, Ref, Task, TerminalError
from hsm.engine import Backoff, EngineOptions
from hsm.errors import CommitOutcomeUnknownError, StorageUnavailableError
from hsm.testing import CutOffError, FakeClock, FaultyStore, TestEngine
from tests.support.databases import Database, new_database
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    Ring,
    Soon,
    Step,
    World,
    ask,
    job,
    noted,
    small,
    started,
    step,
    write,
)

SECOND: Final = timedelta(seconds=1)
MODES: Final = ("ok", "flaky", "dead", "idle", "spawn")
Path_: TypeAlias = tuple[Key, ...]


class PlannedError(Exception):
    """An update's own reason to fail."""


# What happens. A number that picks something is taken modulo how much there is to pick from.


@attrs.frozen
class Ask:
    target: int
    mode: str
    kind: int
    delay: int


@attrs.frozen
class Add:
    target: int
    id: str


@attrs.frozen
class Delete:
    target: int


Edit: TypeAlias = Ask | Add | Delete


@attrs.frozen
class Update:
    """An update by one of the engines; it may fail in the end, of its own accord."""

    engine: int
    edits: list[Edit]
    fails: bool


@attrs.frozen
class Skip:
    seconds: int


@attrs.frozen
class Cut:
    """Cut an engine off at one of its next writes."""

    engine: int
    write: int
    carried_out: bool


@attrs.frozen
class Restart:
    engine: int


numbers = st.integers(0, 30)
edits = (
    st.builds(Ask, numbers, st.sampled_from(MODES), st.integers(0, 3), st.integers(0, 60))
    | st.builds(Add, numbers, st.sampled_from(["a", "b", "a-", "c/d", ""]))
    | st.builds(Delete, numbers)
)
updates = st.builds(
    Update, st.integers(0, 1), st.lists(edits, max_size=6), st.sampled_from([False, False, False, True])
)
events = (
    updates
    | updates
    | updates
    | st.builds(Skip, st.integers(0, 40))
    | st.builds(Cut, st.integers(0, 1), st.integers(1, 6), st.booleans())
    | st.builds(Restart, st.integers(0, 1))
)
options = st.builds(
    small,
    loaded_nodes=st.sampled_from([1, 3, 100]),
    delete_rows=st.sampled_from([1, 100]),
    queue_buffer=st.sampled_from([1, 2, 100]),
    timer_window=st.sampled_from([1, 2, 100]),
    concurrency=st.sampled_from([1, 3]),
    cached_executions=st.sampled_from([1, 10]),
    shard_count=st.just(1),
    poll_interval=st.just(10 * SECOND),
    lease_seconds=st.just(30),
    backoff=st.just(Backoff(SECOND, 4 * SECOND)),
)


@attrs.define
class Machine:
    """A machine as it should be: what updates wrote, and the tasks that they asked for."""

    notes: list[str] = attrs.field(factory=list)
    tasks: list[str] = attrs.field(factory=list)


class Model:
    """The tree as the updates that went through left it, in order of insertion."""

    def __init__(self) -> None:
        self.machines: dict[Path_, Machine] = {(): Machine()}

    def copy(self) -> Model:
        copied = Model()
        copied.machines = {
            path: Machine([*machine.notes], [*machine.tasks]) for path, machine in self.machines.items()
        }
        return copied

    def target(self, number: int) -> Path_:
        paths = list(self.machines)
        return paths[number % len(paths)]

    def in_order(self) -> list[Path_]:
        """Paths as a walk meets them."""

        def below(parent: Path_) -> list[Path_]:
            found = [parent]
            for path in self.machines:
                if path and path[:-1] == parent:
                    found += below(path)
            return found

        return below(())


class Story:
    """The two engines, the model, and what to do at each event."""

    def __init__(self, database: Database, chosen: EngineOptions) -> None:
        self.database = database
        self.options = chosen
        self.clock = FakeClock()
        self.world = World()
        self.model = Model()
        self.count = 0
        self.failures: dict[str, int] = {}
        self.stores: list[FaultyStore] = []
        self.engines: list[TestEngine] = []
        for task in (Lasting, Soon, Alarm):
            self.world.on(task, self.run_task)
        self.world.ring = self.ring
        self.ref = Ref(job())

    # What tasks do, as their names say

    async def run_task(self, env: Environment, ref: Ref, task: Lasting) -> None:
        mode = task.name.partition("-")[0]
        self.fail(mode, task.name)
        if mode == "spawn":
            spawned = Soon(task.name.replace("spawn", "ok") + "'")
            await env.update(ref, lambda node: node.transition(Job, write(task.name, spawned)))
        elif mode != "idle":
            await noted(env, ref, task)

    def ring(self, env: Environment, node: Node, task: Ring) -> None:
        mode = task.name.partition("-")[0]
        self.fail(mode, task.name)
        if mode != "idle":
            node.transition(Job, write(task.name))

    def fail(self, mode: str, name: str) -> None:
        if mode == "dead":
            raise TerminalError(name)
        self.failures[name] = self.failures.get(name, 0) + 1
        if mode == "flaky" and self.failures[name] < 3:
            raise OSError(name)

    # Engines

    async def open(self, index: int) -> None:
        store = FaultyStore(self.database.store)
        engine = TestEngine(self.world.registry, store, self.options, clock=self.clock)
        await engine.__aenter__()
        if index == len(self.engines):
            self.stores.append(store)
            self.engines.append(engine)
        self.stores[index], self.engines[index] = store, engine

    async def replace_if_cut_off(self) -> None:
        for index, store in enumerate(self.stores):
            if store.is_cut_off:
                with contextlib.suppress(CutOffError):
                    await self.engines[index].__aexit__(CutOffError, CutOffError(), None)
                await self.open(index)

    async def settle(self) -> None:
        """Until both engines have nothing to do, or are cut off."""
        for _ in range(5):
            await asyncio.sleep(0)
        for store, engine in zip(self.stores, self.engines, strict=True):
            quiet = asyncio.ensure_future(engine.drain())
            cut = asyncio.ensure_future(store.until_cut_off())
            done, _ = await asyncio.wait([quiet, cut], timeout=5, return_when=asyncio.FIRST_COMPLETED)
            assert done, "the engine does not come to rest"
            for waiting in (quiet, cut):
                waiting.cancel()

    # Events

    async def tell(self, event: Update | Skip | Cut | Restart) -> None:
        if isinstance(event, Update):
            await self.update(event)
        elif isinstance(event, Skip):
            await self.clock.skip(event.seconds * SECOND, settle=self.settle)
        elif isinstance(event, Cut):
            store = self.stores[event.engine]
            store.cut_off_at(store.writes + event.write, carried_out=event.carried_out)
        else:
            self.stores[event.engine].reconnect()
            await self.engines[event.engine].__aexit__(None, None, None)
            await self.open(event.engine)
        await self.replace_if_cut_off()

    async def update(self, event: Update) -> None:
        self.count += 1
        mark = f"update {self.count}"
        planned = self.model.copy()
        changes = [change for edit in event.edits for change in self.plan(planned, edit, mark)]
        planned.machines[()].notes.append(mark)

        def change(root: Node) -> None:
            for path, action, argument in changes:
                node = root.child(path)
                if action == "add":
                    node.add_child(step(argument), Step())
                elif action == "delete":
                    node.delete_child(step(argument))
                else:
                    ask(self.task(argument))(node)
            root.transition(Job, write(mark))
            if event.fails:
                raise PlannedError

        try:
            await self.engines[event.engine].update(self.ref, change)
        except PlannedError:
            assert event.fails
        except (StorageUnavailableError, CommitOutcomeUnknownError):
            assert self.stores[event.engine].is_cut_off
            if mark in (await self.database.tree(self.ref.execution))[()].data.decode():
                self.model = planned
        else:
            self.model = planned

    def plan(self, model: Model, edit: Edit, mark: str) -> list[tuple[Path_, str, str]]:
        path = model.target(edit.target)
        if isinstance(edit, Ask):
            self.count += 1
            name = f"{edit.mode}-{self.count}"
            model.machines[path].tasks.append(name)
            return [(path, "ask", f"{name}|{edit.kind}|{edit.delay}")]
        if isinstance(edit, Add):
            key = step(edit.id)
            if (*path, key) in model.machines or len(path) == 3:
                return []
            model.machines[*path, key] = Machine()
            return [(path, "add", edit.id)]
        if not path:
            return []
        for other in list(model.machines):
            if other[: len(path)] == path:
                del model.machines[other]
        return [(path[:-1], "delete", path[-1].id)]

    def task(self, text: str) -> Task:
        name, kind, delay = text.split("|")
        due = self.clock.now() + int(delay) * SECOND
        tasks: list[Task] = [Lasting(name, destination=delay), Soon(name), Alarm(name, due), Ring(name, due)]
        return tasks[int(kind)]

    # The end

    async def check(self) -> None:
        for store in self.stores:
            store.reconnect()
        await self.clock.skip(200 * SECOND, settle=self.settle)
        await self.check_tree()
        await self.database.check()
        assert await self.database.queued() == []
        assert await self.database.keys("z/") == []
        for engine in self.engines:
            assert await engine.read(self.ref, lambda root: [node.path for node in root.walk()]) == (
                self.model.in_order()
            )

    async def check_tree(self) -> None:
        rows = await self.database.tree(self.ref.execution)
        assert set(rows) == set(self.model.machines)
        dead = {letter.task_id for letter in [d async for d in self.engines[0].dead_letters()]}
        logs = await self.engines[0].read(
            self.ref, lambda root: {node.path: list(node.data(Job).log) for node in root.walk()}
        )
        for path, machine in self.model.machines.items():
            written = [line for line in logs[path] if line.startswith("update")]
            done = [line for line in logs[path] if not line.startswith("update")]
            assert written == machine.notes
            expected = [name for name in machine.tasks if name.partition("-")[0] in {"ok", "flaky", "spawn"}]
            for name in machine.tasks:
                if name.startswith("spawn") and name + "'" not in expected and self.spawns(name):
                    expected.append(name.replace("spawn", "ok") + "'")
            assert sorted(done) == sorted(expected)
            waiting = {task.id for task in rows[path].tasks}
            assert len(waiting) == len([name for name in machine.tasks if name.startswith("dead")])
            assert waiting <= dead

    def spawns(self, name: str) -> bool:
        return any(run.name == name.replace("spawn", "ok") + "'" for run in self.world.runs)


@settings(max_examples=100, deadline=None)
@given(st.lists(events, min_size=5, max_size=30), options)
def test_store_is_what_the_updates_say(
    happenings: list[Update | Skip | Cut | Restart], chosen: EngineOptions
) -> None:
    asyncio.run(play(happenings, chosen))


async def play(happenings: list[Update | Skip | Cut | Restart], chosen: EngineOptions) -> None:
    async with new_database("memory", Path()) as database:
        story = Story(database, chosen)
        for index in range(2):
            await story.open(index)
        try:
            story.ref = await started(story.engines[0])
            for event in happenings:
                await story.tell(event)
            await story.check()
        finally:
            for engine in story.engines:
                await engine.__aexit__(CutOffError, CutOffError(), None)
