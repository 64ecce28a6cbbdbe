"""Dead letters: rows that nobody can read, tasks that nobody knows, and how to try again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from hsm import (
    Environment,
    Ref,
    SerializationError,
    StaleReferenceError,
    StorageUnavailableError,
    Task,
    TerminalError,
)
from hsm.engine import DeadLetter
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.errors import StoreUnavailableError
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Lasting,
    Ring,
    Soon,
    Step,
    World,
    ask,
    failing,
    job,
    log,
    note,
    pending,
    small,
    started,
    step,
)


async def dead(engine: TestEngine) -> list[DeadLetter]:
    return [letter async for letter in engine.dead_letters()]


async def test_unknown_task_types_wait_in_the_dead_letters_for_a_newer_program(database: Database) -> None:
    old, new = World(without=(Lasting,)), World()
    async with TestEngine(new.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("of the new program"), Soon("known"))

    async with TestEngine(old.registry, database.store) as engine:
        await engine.drain()
        (letter,) = await dead(engine)
        assert (letter.error_type, letter.task_type) == ("NotRegisteredError", "12")
        assert old.names() == ["known"]

    async with TestEngine(new.registry, database.store) as engine:
        await engine.replay(letter)
        await engine.drain()
        assert await engine.read(ref, log) == ["known", "of the new program"]
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_missing_executor_is_a_dead_letter(database: Database) -> None:
    from hsm import MachineType, Registry, attrs_definition
    from tests.support.jobs import Job

    registry = Registry()
    registry.register_machine(attrs_definition(MachineType(1, "job"), Job))
    registry.register_task(Soon)
    async with TestEngine(registry, database.store) as engine:
        await engine.start(job(), Job(), on_start=ask(Soon("x")))
        await engine.drain()
        assert [letter.error_type for letter in await dead(engine)] == ["NotRegisteredError"]


@pytest.mark.parametrize("prefix", ["o/", "i/", "t/"])
async def test_undecodable_task_row_is_dead_lettered_and_harms_nobody(
    world: World, database: Database, clock: FakeClock, prefix: str
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock, run_tasks=False) as engine:
        tasks: dict[str, Task] = {"o/": Lasting("x"), "i/": Soon("x"), "t/": Ring("x", clock.now())}
        await started(engine, "poisoned", tasks[prefix])
        key = await database.overwrite(prefix, b"\xff\xff garbage")
        others = [await started(engine, str(number), Lasting("y"), Soon("z")) for number in range(3)]

    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        await engine.drain()
        (letter,) = await dead(engine)
        assert letter.error_type == "SerializationError"
        assert key in letter.error
        assert letter.execution is None
        assert [sorted(await engine.read(ref, log)) for ref in others] == [["y", "z"]] * 3

        await engine.replay(letter)
        await engine.drain()
        (again,) = await dead(engine)
        assert (again.task_id, again.error_type) == (letter.task_id, "SerializationError")
    assert await database.queued() == []


async def test_task_row_with_undecodable_payload_or_wrong_kind_is_dead_lettered(
    world: World, database: Database, clock: FakeClock
) -> None:
    from persistence.proto.execution_pb2 import TaskRow
    from persistence.store import SetRequest

    async with TestEngine(world.registry, database.store, clock=clock, run_tasks=False) as engine:
        await started(engine, "a", Soon("payload"))
        await started(engine, "b", Lasting("kind"))
        good = await started(engine, "c", Alarm("good", clock.now()))
    for partition, item in [*await database.rows("i/"), *await database.rows("o/")]:
        row = TaskRow.FromString(item.value)
        if item.key.startswith("i/"):
            row.info.data = b"[not json"
        else:
            row.kind.deadline_nanos = 1
        await database.store.set(SetRequest(partition=partition, key=item.key, value=row.SerializeToString()))

    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        await engine.drain()
        errors = sorted([letter.error_type for letter in await dead(engine)])
        assert errors == ["InvalidTaskKindError", "SerializationError"]
        assert await engine.read(good, log) == ["good"]
        assert world.names() == ["good"]


async def test_undecodable_machine_is_named_and_harms_no_other(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "poisoned", Soon("never"))
        key = await database.overwrite("e/", b"\xff\xff garbage")
        good = await started(engine, "good", Soon("fine"))

    async with TestEngine(world.registry, database.store) as engine:
        with pytest.raises(SerializationError, match=key):
            await engine.read(ref, log)
        with pytest.raises(SerializationError, match=key):
            await engine.update(ref, note("x"))
        await engine.drain()
        (letter,) = await dead(engine)
        assert letter.error_type == "SerializationError"
        assert key in letter.error
        assert await engine.read(good, log) == ["fine"]
        assert await engine.count() == 2


async def test_undecodable_data_of_one_machine_leaves_the_others_of_its_tree(
    world: World, database: Database
) -> None:
    from persistence.proto.hsm_pb2 import StateMachineNode
    from persistence.store import SetRequest

    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job")
        await engine.update(ref, lambda root: ask(Soon("bad"))(root.add_child(step("bad"), Step())))
        await engine.update(ref, lambda root: ask(Soon("good"))(root.add_child(step("good"), Step())))
    ((partition, item),) = [(p, i) for p, i in await database.rows("n/") if i.key.endswith(":bad")]
    row = StateMachineNode.FromString(item.value)
    row.data = b"\xff"
    await database.store.set(SetRequest(partition=partition, key=item.key, value=row.SerializeToString()))

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(Ref(ref.execution, (step("good"),)), log) == ["good"]
        with pytest.raises(SerializationError):
            await engine.read(Ref(ref.execution, (step("bad"),)), log)
        assert [letter.path for letter in await dead(engine)] == [(step("bad"),)]
        described = await engine.describe(ref.execution)
        assert [node.path for node in described.nodes] == [(), (step("bad"),), (step("good"),)]


async def test_replayed_dead_letter_begins_anew(world: World, database: Database) -> None:
    world.on(Soon, failing(OSError("x"), OSError("x"), None))
    async with TestEngine(world.registry, database.store, small(max_attempts=2)) as engine:
        ref = await started(engine, "job", Soon("task"))
        await engine.run_until_idle()
        (letter,) = await dead(engine)
        await engine.replay(letter)
        await engine.run_until_idle()
        assert [run.attempt for run in world.runs] == [1, 2, 1]
        assert await engine.read(ref, log) == ["task"]
        assert await dead(engine) == []
        assert await pending(engine, ref) == []
        with pytest.raises(StaleReferenceError, match=letter.task_id):
            await engine.replay(letter)
    assert await database.queued() == []


async def test_task_that_ends_well_after_all_leaves_no_dead_letter(world: World, database: Database) -> None:
    """The store fails when the task is to be buried, so that it is tried once more."""
    store = FaultyStore(database.store)
    world.on(Lasting, failing(TerminalError("for now"), None))
    failures: list[StoreCall] = []

    async def fail(call: StoreCall) -> None:
        if call.method == "multi" and "key='d/" in str(call.request) and not failures:
            failures.append(call)
            raise StoreUnavailableError("busy")

    store.before = fail
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.skip(timedelta(minutes=1))
        assert len(failures) == 1
        assert await engine.read(ref, log) == ["call"]
        assert [letter async for letter in engine.dead_letters()] == []
        assert await pending(engine, ref) == []
    assert await database.queued() == []


async def test_replay_of_an_older_burial_is_refused(world: World, database: Database) -> None:
    world.on(Soon, failing(TerminalError("x")))
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine, "job", Soon("task"))
        await engine.drain()
        (first,) = await dead(engine)
        await engine.replay(first)
        await engine.drain()
        (second,) = await dead(engine)
        with pytest.raises(StaleReferenceError):
            await engine.replay(first)
        await engine.replay(second)
        await engine.drain()
        assert len(world.runs) == 3


async def test_replay_by_a_process_that_runs_no_tasks(world: World, database: Database) -> None:
    world.on(Lasting, failing(TerminalError("x"), None))
    async with (
        TestEngine(world.registry, database.store) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        ref = await started(engine, "job", Lasting("task"))
        await engine.drain()
        (letter,) = await dead(other)
        await other.replay(letter)
        await engine.skip(timedelta(hours=1))
        assert await engine.read(ref, log) == ["task"]


async def test_validate_that_fails_does_not_hold_up_other_tasks(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TestEngine(world.registry, database.store, small(max_attempts=2)) as engine:
        ref = await started(engine, "job", Soon("good"), Lasting("bad"))

        def broken(self: Lasting, ref: Ref, node: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Lasting, "validate", broken)
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["good"]
        assert [letter.error_type for letter in await dead(engine)] == ["ZeroDivisionError"]
        with pytest.raises(ZeroDivisionError):
            await engine.update(ref, ask(Lasting("one more")))


async def test_error_text_is_bounded(world: World, database: Database) -> None:
    world.on(Soon, failing(TerminalError("x" * 100_000)))
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine, "job", Soon("task"))
        await engine.drain()
        (letter,) = await dead(engine)
        assert len(letter.error) < 10_000


async def test_store_that_does_not_answer_is_told_as_everywhere_else(
    world: World, database: Database
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        store.cut_off()
        with pytest.raises(StorageUnavailableError):
            _ = [letter async for letter in engine.dead_letters()]
        with pytest.raises(StorageUnavailableError):
            await engine.repair()
        store.reconnect()


async def test_task_that_somebody_else_has_ended_is_no_dead_letter(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a process runs a task beyond its lease, which another one takes up and ends meanwhile."""

    async def fail(env: Environment, ref: Ref, task: Task) -> None:
        (key,) = await database.queued()
        await database.remove(key)
        raise TerminalError("never")

    world.on(Lasting, fail)
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine, "job", Lasting("call"))
        await engine.drain()
        assert await dead(engine) == []
    assert "dead-lettered" not in caplog.text
