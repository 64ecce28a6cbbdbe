"""One story, cut off at every write it makes, before and after the write: it always ends the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from hsm import Collection, Environment, Node, Ref, TransitionOutput
from hsm.engine import EngineOptions
from hsm.errors import RetryLaterError
from hsm.testing import Call as StoreCall, CutOffError, FakeClock, FaultyStore, TestEngine
from hsm.testing.faults import Hook
from persistence.executions import SETTINGS_PARTITION
from persistence.store import EngineStore
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    Ring,
    Soon,
    State,
    Step,
    World,
    job,
    log,
    note,
    small,
    step,
)

SECOND = timedelta(seconds=1)
OPTIONS = small(delete_rows=2, loaded_nodes=2, poll_interval=30 * SECOND, lease_seconds=90, max_attempts=3)


async def call(env: Environment, ref: Ref, task: Lasting) -> None:
    """An outbound call that fails once, then adds children and sets timers."""
    if ref.attempt == 1:
        raise OSError("try again")
    due = env.now() + 10 * SECOND

    def answered(root: Node) -> None:
        for id_ in ("a", "b", "c"):
            child = root.add_child(step(id_), Step())
            child.add_child(step("below"), Step())
            note("made", Alarm(f"alarm {id_}", due))(child)
        note(task.name, Ring("deadline", due + 10 * SECOND))(root)

    await env.update(ref, answered)


def deadline(env: Environment, node: Node, task: Ring) -> None:
    """Deletes the children, adds one of them again, and finishes."""
    for id_ in list(node_ids(node)):
        node.delete_child(step(id_))
    note("again", Soon("last"))(node.add_child(step("b"), Step()))

    def finish(job: Job) -> TransitionOutput:
        job.state = State.DONE
        job.log.append(task.name)
        return TransitionOutput()

    node.transition(Job, finish)


def node_ids(node: Node) -> list[str]:
    return list(Collection(node, 2, Step))


async def story(world: World, store: EngineStore, clock: FakeClock, options: EngineOptions) -> None:
    """From the start to the end, as far as the store lets it."""
    async with TestEngine(world.registry, store, options, clock=clock) as engine:
        working = asyncio.ensure_future(tell(engine))
        cut = asyncio.ensure_future(store.until_cut_off()) if isinstance(store, FaultyStore) else working
        await asyncio.wait([working, cut], return_when=asyncio.FIRST_COMPLETED)
        if not working.done() or working.exception() is not None:
            working.cancel()
            await asyncio.wait([working])
            raise CutOffError
        cut.cancel()


async def tell(engine: TestEngine) -> None:
    ref = await engine.start(job(), Job(), request_id="r", on_start=note("start", Lasting("call")))
    # Asked inside the update: what was cut off may still be on its way through SQLite.
    await engine.update(ref, lambda root: None if "by hand" in log(root) else note("by hand")(root))
    await engine.skip(60 * SECOND)


async def check_end(world: World, database: Database, clock: FakeClock) -> None:
    async with TestEngine(world.registry, database.store, OPTIONS, clock=clock) as engine:
        await engine.skip(60 * SECOND)
        written = await engine.read(Ref(job()), log)
        assert written in (["start", "by hand", "call", "deadline"], ["start", "call", "by hand", "deadline"])
        assert await engine.read(Ref(job()), lambda node: [child.path for child in node.walk()]) == [
            (),
            (step("b"),),
        ]
        assert await engine.read(Ref(job(), (step("b"),)), log) == ["again", "last"]
        assert await engine.read(Ref(job()), lambda node: node.data(Job).state) is State.DONE
        assert [letter async for letter in engine.dead_letters()] == []
    assert await database.queued() == []
    assert await database.keys("z/") == []
    assert len(await database.keys("n/")) == 1
    await database.check()


def new_world() -> World:
    world = World()
    world.on(Lasting, call)
    world.ring = deadline
    return world


async def test_story_without_a_crash(database: Database, clock: FakeClock) -> None:
    store = FaultyStore(database.store)
    await story(new_world(), store, clock, OPTIONS)
    assert store.writes > 10
    await check_end(new_world(), database, clock)


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("write", range(1, 16))
async def test_story_cut_off_at_a_write(
    database: Database, clock: FakeClock, write: int, carried_out: bool
) -> None:
    world = new_world()
    store = FaultyStore(database.store)
    store.cut_off_at(write, carried_out=carried_out)
    try:
        await story(world, store, clock, OPTIONS)
    except (CutOffError, RetryLaterError):
        await story(world, database.store, clock, OPTIONS)
    await check_end(world, database, clock)


def partition_of(request: object) -> str:
    """Where a write goes."""
    first = request[0] if isinstance(request, Sequence) else request
    return getattr(first, "partition", "")


def cut_off_after(store: FaultyStore, writes: int) -> Hook:
    """Let so many writes to the execution through, that of a start which finds it there among them."""
    left = writes

    async def count(call: StoreCall) -> None:
        nonlocal left
        if call.write and partition_of(call.request) != SETTINGS_PARTITION:
            left -= 1
            if left < 0:
                store.cut_off()

    return count


@pytest.mark.parametrize("every", [2, 3, 5])
async def test_story_cut_off_again_and_again(database: Database, clock: FakeClock, every: int) -> None:
    """Each run gets a few writes further than the last one; repeating the start is one of them."""
    world = new_world()
    for _ in range(60):
        store = FaultyStore(database.store)
        store.before = cut_off_after(store, every)
        try:
            await story(world, store, clock, OPTIONS)
        except (CutOffError, RetryLaterError):
            continue
        break
    else:
        pytest.fail("the story does not come to its end")
    await check_end(world, database, clock)
