"""Starting executions: once for each request, all or nothing."""

from __future__ import annotations

import pytest

from hsm import (
    ExecutionAlreadyStartedError,
    ExecutionKey,
    ExecutionNotFoundError,
    MachineType,
    Node,
    NotRegisteredError,
    Ref,
    StorageUnavailableError,
)
from hsm.testing import FaultyStore, TestEngine
from persistence.store import GetRequest
from tests.support.databases import Database
from tests.support.jobs import STEP, Call, Job, Step, World, job, log, note, started, step


async def test_start_puts_the_machine_into_the_store(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Job(log=["hello"]))

    async with TestEngine(world.registry, database.store) as engine:
        assert await engine.read(Ref(job()), log) == ["hello"]
        assert await engine.read(ref, log) == ["hello"]
        assert ref.execution.run_id != ""


async def test_same_request_starts_only_once(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        first = await engine.start(job(), Job(), request_id="r", on_start=note("first", Call("call")))
        second = await engine.start(job(), Job(), request_id="r", on_start=note("second", Call("call")))
        await engine.drain()

        assert second == first
        assert await engine.read(first, log) == ["first", "call"]
        assert world.names() == ["call"]


@pytest.mark.parametrize(("first", "second"), [("r", "s"), ("r", ""), ("", "s"), ("", "")])
async def test_another_request_is_refused(world: World, database: Database, first: str, second: str) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Job(), request_id=first)

        with pytest.raises(ExecutionAlreadyStartedError, match="tests/job") as caught:
            await engine.start(job(), Job(log=["other"]), request_id=second)

        assert caught.value.run_id == ref.execution.run_id
        assert await engine.read(ref, log) == []


async def test_another_process_that_starts_the_same_is_told(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as engine,
        TestEngine(world.registry, await database.open()) as other,
    ):
        ref = await engine.start(job(), Job(), request_id="r")

        assert await other.start(job(), Job(), request_id="r") == ref
        with pytest.raises(ExecutionAlreadyStartedError):
            await other.start(job(), Job(), request_id="s")


async def test_object_that_several_are_started_with_is_nobodys(world: World, database: Database) -> None:
    """Nor does a start that is tried again find what the first try has done to it."""
    template = Job(log=["begun"])
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        store.cut_off_at(store.writes + 1, carried_out=False)
        for id_ in ("a", "a", "b"):
            try:
                await engine.start(job(id_), template, on_start=note(id_))
            except StorageUnavailableError:
                store.reconnect()
        await engine.update(Ref(job("a")), note("a'"))
        template.log.append("changed")
        await engine.update(Ref(job("b")), note("b'"))
        assert await engine.read(Ref(job("a")), log) == ["begun", "a", "a'"]
        assert await engine.read(Ref(job("b")), log) == ["begun", "b", "b'"]


async def test_start_that_fails_leaves_nothing(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        with pytest.raises(ZeroDivisionError):
            await engine.start(job(), Job(), on_start=lambda _: 1 // 0)
        with pytest.raises(ExecutionNotFoundError):
            await engine.read(Ref(job()), log)
        assert await database.keys("c/", "e/", "n/", "o/") == []

        await engine.start(job(), Job(log=["again"]))
        assert await engine.read(Ref(job()), log) == ["again"]


async def test_children_and_tasks_of_the_start_are_committed_with_it(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        await engine.start(
            job(), Job(), on_start=lambda root: note("x", Call("c"))(root.add_child(step("a"), Step()))
        )

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(Ref(job(), (step("a"),)), log) == ["x", "c"]


async def test_type_of_the_machine_is_told_from_its_data_or_by_name(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job("a"), Step())
        assert (await engine.read(ref, lambda node: node.machine_type)).id == STEP
        await engine.start(job("b"), Job(), machine_type=MachineType(1, "job"))
        with pytest.raises(NotRegisteredError):
            await engine.start(job("c"), object())


@pytest.mark.parametrize("id_", ["", "a/b", "a%b", "%2F", "ü/中", "a b", "..", "🦊", "a" * 150])
async def test_ids_may_be_any_text(world: World, database: Database, id_: str) -> None:
    key = ExecutionKey(id_, id_)
    path = (step(id_), step(id_ + "/"))

    def build(root: Node) -> None:
        note("root")(root)
        first = root.add_child(path[0], Step())
        note("deep", Call("call", destination=id_))(first.add_child(path[1], Step()))

    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(key, Job(), on_start=build)
        await engine.drain()

    async with TestEngine(world.registry, database.store) as engine:
        assert await engine.read(Ref(key, path), log) == ["deep", "call"]
        assert [info.key async for info in engine.list(namespace=id_)] == [
            (await engine.describe(key)).info.key
        ]
        assert await engine.count(namespace=id_ + "x") == 0
    await database.check()


async def test_ids_that_look_alike_are_kept_apart(world: World, database: Database) -> None:
    keys = [
        ExecutionKey("a", "b/c"),
        ExecutionKey("a/b", "c"),
        ExecutionKey("a", "b%2Fc"),
        ExecutionKey("a", "b"),
    ]
    async with TestEngine(world.registry, database.store) as engine:
        for key in keys:
            await engine.start(key, Job(log=[str(key)]))
        for key in keys:
            assert await engine.read(Ref(key), log) == [str(key)]


async def test_number_of_shards_is_that_of_the_first_use(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine)
        settings = await database.store.get(GetRequest(partition="exec", key="settings"))
    import hsm.engine

    many = hsm.engine.EngineOptions(shard_count=7)
    async with TestEngine(world.registry, database.store, many) as engine:
        assert await engine.read(Ref(job()), log) == []
        again = await database.store.get(GetRequest(partition="exec", key="settings"))
        assert again == settings
