"""Two clusters against chance: whatever is written, lost, told twice or late, in the end both are the same.

Each cluster has its database and its engine. Updates go to whichever of them takes them; tasks run where the
execution is; either takes over at any time, knowing little of what the other has done. Deltas are made since any
version, arrive at any time, in any order, twice or never, and the link is cut while one is applied.

At any time, a version means the same in both: the same machines, in the same order, with the same data and counts,
waiting for the same tasks. In the end, when the links work again, both are at the newest version.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeAlias

import attrs
from hypothesis import given, settings, strategies as st

from hsm import (
    CommitOutcomeUnknownError,
    Environment,
    ExecutionNotFoundError,
    Key,
    Node,
    NotActiveError,
    Ref,
    ResendError,
    StorageUnavailableError,
    VersionedTransition,
)
from hsm.engine import Cluster, EngineOptions, Replicator
from hsm.testing import CutOffError, FakeClock, FaultyStore, TestEngine
from hsm.tree import MergeResult
from persistence.proto.replication_pb2 import Delta
from tests.support.databases import Database, new_database
from tests.support.jobs import Alarm, Job, Soon, Step, World, ask, job, noted, small, started, step, write

SECOND: Final = timedelta(seconds=1)
V = VersionedTransition


@attrs.frozen
class Update:
    """One transaction; targets are taken modulo how many machines there are."""

    side: int
    kind: str
    target: int
    id: str


@attrs.frozen
class TakeOver:
    side: int


@attrs.frozen
class Tell:
    """A delta of a side, since some version, is made and put on its way."""

    side: int
    since: int


@attrs.frozen
class Arrive:
    """A delta that is or was on its way arrives; the database may be cut off meanwhile."""

    number: int
    cut: int


@attrs.frozen
class Skip:
    seconds: int


Event: TypeAlias = Update | TakeOver | Tell | Arrive | Skip

sides = st.integers(0, 1)
numbers = st.integers(0, 30)
events = (
    st.builds(
        Update,
        sides,
        st.sampled_from(["add", "add", "write", "ask", "soon", "delete", "again"]),
        numbers,
        st.sampled_from(["a", "b", "c/d"]),
    )
    | st.builds(Tell, sides, numbers)
    | st.builds(Arrive, numbers, st.sampled_from([0, 0, 0, 1, 2]))
    | st.builds(TakeOver, sides)
    | st.builds(Skip, st.integers(1, 40))
)


class Side:
    """A cluster: its database, which can be cut off, and its engine."""

    def __init__(self, database: Database, world: World, options: EngineOptions, clock: FakeClock) -> None:
        self.database = database
        self.store = FaultyStore(database.store)
        self.engine = TestEngine(world.registry, self.store, options, clock=clock)


class Story:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.world = World()
        self.sides: list[Side] = []
        self.sent: list[tuple[int, bytes]] = []
        self.count = 0
        self.ref = Ref(job())
        self.states: dict[V, object] = {}
        self.world.on(Soon, run_task)
        self.world.on(Alarm, run_task)

    async def open(self, stack: AsyncExitStack, tombstones: int) -> None:
        for id_, peer in ((1, 2), (2, 1)):
            cluster = Cluster(id=id_, peers=(peer,), tombstones=tombstones)
            options = small(
                cluster=cluster, shard_count=id_, poll_interval=10 * SECOND, lease_seconds=3600, delete_rows=2
            )
            database = await stack.enter_async_context(new_database("memory", Path()))
            side = Side(database, self.world, options, self.clock)
            await stack.enter_async_context(side.engine)
            self.sides.append(side)
        self.ref = await started(self.sides[0].engine)

    async def tell(self, event: Event) -> None:
        if isinstance(event, Update):
            await self.update(self.sides[event.side], event)
        elif isinstance(event, TakeOver):
            with contextlib.suppress(ExecutionNotFoundError):
                await self.sides[event.side].engine.take_over(self.ref.execution)
        elif isinstance(event, Tell):
            await self.send(event)
        elif isinstance(event, Skip):
            await self.clock.skip(event.seconds * SECOND, settle=self.settle)
        elif self.sent:
            await self.arrive(event)
        await self.settle()
        for side in self.sides:
            await self.check_version(side)

    async def check_version(self, side: Side) -> None:
        """What the side has is what anybody has had at this version."""
        version = await self.version(side)
        if version.transition_count:
            state = await self.seen(side)
            assert self.states.setdefault(version, state) == state

    async def settle(self) -> None:
        for side in self.sides:
            await side.engine._settle()

    async def update(self, side: Side, event: Update) -> None:
        self.count += 1
        mark = f"update {self.count}"

        def change(root: Node) -> None:
            paths = [node.path for node in root.walk()]
            node = root.child(paths[event.target % len(paths)])
            key = step(event.id)
            if event.kind == "add" and len(node.path) < 3 and (*node.path, key) not in paths:
                node.add_child(key, Step())
            elif event.kind == "write":
                node.transition(Job, write(mark))
            elif event.kind == "ask":
                ask(Alarm(mark, self.clock.now() + 20 * SECOND))(node)
            elif event.kind == "soon":
                ask(Soon(mark))(node)
            elif node.parent is not None and node.key is not None:
                parent, own = node.parent, node.key
                parent.delete_child(own)
                if event.kind == "again":
                    parent.add_child(own, Step())
            root.transition(Job, write(mark))

        with contextlib.suppress(NotActiveError, LookupError):
            if await self.known(side):
                await side.engine.update(self.ref, change)

    async def known(self, side: Side) -> bool:
        return bool([info async for info in side.engine.list()])

    async def send(self, event: Tell) -> None:
        engine = self.sides[event.side].engine
        if not await self.known(self.sides[event.side]):
            return
        versions = [V(), *await engine.versions(self.ref.execution)]
        last = versions[-1]
        versions += [V(last.failover_version, max(last.transition_count - back, 0)) for back in (1, 2, 3)]
        delta = await engine.changes_since(self.ref.execution, versions[event.since % len(versions)])
        self.sent.append((1 - event.side, delta.SerializeToString()))

    async def arrive(self, event: Arrive) -> None:
        target, message = self.sent[event.number % len(self.sent)]
        side, delta = self.sides[target], Delta.FromString(message)
        before = await self.version(side)
        if event.cut:
            side.store.cut_off_at(side.store.writes + 1, carried_out=event.cut == 2)
        try:
            result = await side.engine.apply_delta(delta)
        except (StorageUnavailableError, CommitOutcomeUnknownError, CutOffError):
            assert side.store.is_cut_off
        except ResendError:
            assert await self.version(side) == before
        else:
            after = await self.version(side)
            assert (after > before) == (result is MergeResult.APPLIED)
            if result is not MergeResult.APPLIED:
                assert after == before
        side.store.reconnect()

    async def version(self, side: Side) -> V:
        if not await self.known(side):
            return V()
        return (await side.engine.versions(self.ref.execution))[-1]

    async def check(self) -> None:
        newest = max([await self.version(side) for side in self.sides])
        east, west = self.sides
        for _ in range(2):
            for source, target in ((east, west), (west, east)):
                await Replicator(source.engine, target.engine, "tests").pump()
        for side in self.sides:
            assert await self.version(side) == newest
            assert await side.database.keys("r/") == []
        assert await self.seen(east) == await self.seen(west)
        # The one that has it runs what there is left to run, and tells of it.
        await self.clock.skip(60 * SECOND, settle=self.settle)
        for source, target in ((east, west), (west, east)):
            await Replicator(source.engine, target.engine, "tests").pump()
        assert await self.seen(east) == await self.seen(west)
        for side in self.sides:
            assert await side.database.queued() == []
            assert await side.database.keys("z/", "d/") == []
            tree = await side.engine.describe(self.ref.execution)
            assert [node.tasks for node in tree.nodes if node.tasks] == []

    async def seen(self, side: Side) -> object:
        """All there is of the execution, as rows and as a tree."""
        engine, key = side.engine, self.ref.execution
        delta = await engine.changes_since(key)
        del delta.row.tombstones[:]
        delta.row.ClearField("tombstones_from")
        nodes = [(node.path, node.data, node.transition_count) for node in (await engine.describe(key)).nodes]
        order = await engine.read(self.ref, paths)
        rows = {path: node.ordinal for path, node in (await side.database.tree(key)).items()}
        return delta.SerializeToString(deterministic=True), nodes, order, [rows[path] for path in order]


def paths(root: Node) -> list[tuple[Key, ...]]:
    return [node.path for node in root.walk()]


async def run_task(env: Environment, ref: Ref, task: Soon | Alarm) -> None:
    """Half of the tasks change nothing, but that they are done."""
    if int(task.name.rpartition(" ")[2]) % 2:
        await noted(env, ref, task)


@settings(max_examples=150, deadline=None)
@given(st.lists(events, min_size=5, max_size=40), st.sampled_from([0, 2, 64]))
def test_clusters_come_to_be_the_same(happenings: list[Event], tombstones: int) -> None:
    asyncio.run(play(happenings, tombstones))


async def play(happenings: list[Event], tombstones: int) -> None:
    async with AsyncExitStack() as stack:
        story = Story()
        await story.open(stack, tombstones)
        for event in happenings:
            await story.tell(event)
        await story.check()
