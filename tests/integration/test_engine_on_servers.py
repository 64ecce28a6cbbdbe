"""The engine on every kind of server, by the real clock: what it promises on a file it keeps there, too.

The engine's own tests run on servers with HSM_TEST_DATABASES, see tests/unit/hsm/engine/conftest.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import attrs
import pytest

from hsm import (
    CommitOutcomeUnknownError,
    Environment,
    Node,
    Ref,
    StorageUnavailableError,
    TerminalError,
    TransactionTooLargeError,
)
from hsm.engine import Backoff, Engine, EngineOptions
from persistence.store import Feature
from tests.conftest import NewServer
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Call,
    Lasting,
    Ring,
    Soon,
    Step,
    World,
    ask,
    failing,
    log,
    note,
    started,
    step,
)
from tests.support.servers import KINDS, Server

pytestmark = [pytest.mark.server, pytest.mark.parametrize("kind", KINDS)]

_PATIENCE = timedelta(seconds=60)


def options() -> EngineOptions:
    return EngineOptions(
        shard_count=2,
        poll_interval=timedelta(milliseconds=50),
        backoff=Backoff(timedelta(milliseconds=10)),
    )


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def database(kind: str, server_of: Callable[[str], Server]) -> AsyncIterator[Database]:
    async with Database(server_of(kind).fresh_url()) as opened:
        yield opened


def logged(*names: str) -> Callable[[Node], bool]:
    """Whether all these stand in a node's log, for `wait`."""
    return lambda node: set(names) <= set(log(node))


async def until_gone(database: Database, *prefixes: str, engine: Engine | None = None) -> None:
    """Return when no row's key begins with one of these."""
    async with asyncio.timeout(_PATIENCE.total_seconds()):
        for pause_seconds in itertools.repeat(0.02):
            if engine is not None:
                await engine.drain()
            if not await database.keys(*prefixes):
                return
            await asyncio.sleep(pause_seconds)


async def until_nothing_waits(engine: Engine, database: Database) -> None:
    """Return when there is no task in a queue."""
    await until_gone(database, "t/", "o/", "i/", engine=engine)


async def test_tasks_of_every_kind_run(world: World, database: Database) -> None:
    async with Engine(world.registry, database.store, options()) as engine:
        soon = engine.now() + timedelta(milliseconds=30)
        tasks = (Call("call"), Lasting("lasting"), Soon("soon"), Ring("ring", soon), Alarm("alarm", soon))
        # `Call` is stale as soon as its machine moves on, so it has a machine of its own.
        ref = await started(engine, "job", *tasks[1:])
        other = await started(engine, "other", tasks[0])
        await engine.wait(ref, logged("lasting", "soon", "ring", "alarm"), timeout=_PATIENCE)
        await engine.wait(other, logged("call"), timeout=_PATIENCE)
        await until_nothing_waits(engine, database)
        assert sorted(await engine.read(ref, log)) == ["alarm", "lasting", "ring", "soon"]
    await database.check()


async def test_engines_that_update_one_execution_lose_nothing(world: World, database: Database) -> None:
    async with (
        Engine(world.registry, database.store, options()) as one,
        Engine(world.registry, await database.open(), options()) as other,
    ):
        ref = await started(one)
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task((one, other)[number % 2].update(ref, note(str(number))))
        for engine in (one, other):
            assert sorted(await engine.read(ref, log), key=int) == [str(number) for number in range(20)]
    await database.check()


async def test_waiters_hear_of_what_another_engine_does(world: World, database: Database) -> None:
    """Where the store can be watched, long before a poll would tell."""
    rarely = options()
    if Feature.WATCH in database.store.features:
        rarely = attrs.evolve(rarely, poll_interval=timedelta(hours=1), lease_seconds=3600)
    async with (
        Engine(world.registry, database.store, rarely, run_tasks=False) as one,
        Engine(world.registry, await database.open(), options(), run_tasks=False) as other,
    ):
        refs = [await started(one, f"job {number}") for number in range(5)]
        for text in ("first", "second"):
            waiting = [
                asyncio.create_task(one.wait(ref, logged(text), timeout=_PATIENCE)) for ref in refs * 20
            ]
            for ref in refs:
                await other.update(ref, note(text))
            await asyncio.gather(*waiting)


async def test_engines_that_share_the_work_change_each_state_once(world: World, database: Database) -> None:
    names = [str(number) for number in range(10)]
    async with (
        Engine(world.registry, database.store, options()) as one,
        Engine(world.registry, await database.open(), options()) as other,
    ):
        refs = [
            await started((one, other)[number % 2], f"job {number}", *(Lasting(name) for name in names))
            for number in range(4)
        ]
        for ref in refs:
            await one.wait(ref, logged(*names), timeout=_PATIENCE)
        await until_nothing_waits(one, database)
        for ref in refs:
            assert sorted(await other.read(ref, log), key=int) == names
    await database.check()


async def test_task_that_failed_for_good_can_be_replayed(world: World, database: Database) -> None:
    world.on(Lasting, failing(OSError("not yet"), TerminalError("never"), None))
    async with Engine(world.registry, database.store, options()) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await until_nothing_waits(engine, database)
        (dead,) = [dead async for dead in engine.dead_letters()]
        assert "never" in dead.error
        await database.check()
        await engine.replay(dead)
        await engine.wait(ref, logged("call"), timeout=_PATIENCE)
        await until_nothing_waits(engine, database)
        assert [dead async for dead in engine.dead_letters()] == []
        assert [run.name for run in world.runs] == ["call"] * 3
    await database.check()


async def test_engine_that_begins_does_what_another_has_left(world: World, database: Database) -> None:
    async with Engine(world.registry, database.store, options(), run_tasks=False) as engine:
        soon = engine.now() + timedelta(milliseconds=30)
        ref = await started(engine, "job", Lasting("call"), Ring("ring", soon))
        await engine.update(ref, note("left"))
    async with Engine(world.registry, await database.open(), options()) as engine:
        await engine.wait(ref, logged("left", "call", "ring"), timeout=_PATIENCE)
    await database.check()


async def test_large_subtree_is_deleted_down_to_its_rows(world: World, database: Database) -> None:
    many = 240  # more than a transaction of etcd holds

    def add(numbers: range) -> Callable[[Node], None]:
        def change(root: Node) -> None:
            parent = root.child((step("top"),))
            for number in numbers:
                parent.add_child(step(str(number)), Step())

        return change

    async with Engine(world.registry, database.store, options()) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: note("made")(root.add_child(step("top"), Step())))
        for first in range(0, many, 40):
            await engine.update(ref, add(range(first, first + 40)))
        top = Ref(ref.execution, (step("top"),))
        await engine.update(top, ask(Lasting("call", destination="nowhere")))
        await engine.update(ref, lambda root: root.delete_child(step("top")))
        assert await engine.read(ref, lambda root: len(list(root.walk()))) == 1
        await until_gone(database, "n/", "o/")
    await database.check()


async def test_update_that_is_too_large_is_refused_as_a_whole(world: World, database: Database) -> None:
    too_long = "x" * (database.store.limits.value_bytes + 1)
    async with Engine(world.registry, database.store, options()) as engine:
        ref = await started(engine)
        before = await database.rows("e/")
        with pytest.raises(TransactionTooLargeError):
            await engine.update(ref, note(too_long, Lasting("call")))
        assert await database.rows("e/") == before
        assert await database.queued() == []
        await engine.update(ref, note("small"))
        assert await engine.read(ref, log) == ["small"]


async def test_engine_goes_on_when_its_server_comes_back(
    kind: str, new_server: NewServer, world: World
) -> None:
    server = new_server(kind, durable=True)
    url = server.fresh_url()
    url += f"{'&' if '?' in url else '?'}connect_timeout=1&request_timeout=1"
    under_way = asyncio.Event()
    may_end = asyncio.Event()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        under_way.set()
        await may_end.wait()
        await env.update(ref, note(task.name))

    world.on(Lasting, run)
    async with (
        Database(url) as database,
        Engine(world.registry, database.store, options()) as engine,
        asyncio.timeout(_PATIENCE.total_seconds()),
    ):
        soon = engine.now() + timedelta(milliseconds=200)
        ref = await started(engine, "job", Lasting("call"), Ring("ring", soon), Soon("soon"))
        await under_way.wait()
        await engine.wait(ref, logged("soon"), timeout=_PATIENCE)
        await asyncio.to_thread(server.kill)
        with pytest.raises((StorageUnavailableError, CommitOutcomeUnknownError)):
            await engine.update(ref, note("while the server was down"))
        may_end.set()
        await asyncio.to_thread(server.start)
        await engine.wait(ref, logged("call", "ring", "soon"), timeout=_PATIENCE)
        await until_nothing_waits(engine, database)
        assert sorted(await engine.read(ref, log)) == ["call", "ring", "soon"]
        assert await engine.read(await started(engine, "other"), log) == []
        await database.check()
