"""Calls and signals: carried out once, however often they are made, and the result kept."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from hsm import (
    CommitOutcomeUnknownError,
    DuplicateRequestError,
    Environment,
    ExecutionAlreadyStartedError,
    ExecutionClosedError,
    Key,
    Node,
    Ref,
    SerializationError,
    StaleReferenceError,
    StorageUnavailableError,
)
from hsm.engine import Call, Engine, EngineOptions, ReusePolicy, environment_as, method
from hsm.testing import Call as StoreCall, FaultyStore, TestEngine
from persistence import errors as storage
from persistence.proto.hsm_pb2 import StateMachineKey
from tests.support.databases import Database
from tests.support.jobs import (
    Job,
    Lasting,
    Soon,
    Step,
    World,
    add_child,
    ask,
    finish,
    job,
    log,
    note,
    pending,
    small,
    started,
    step,
    write,
)


@attrs.frozen
class Receipt:
    number: int
    name: str
    time: datetime = datetime(2030, 1, 1, tzinfo=UTC)


@method(Receipt)
def append(node: Node, name: str, *, fail: bool = False) -> Receipt:
    """Writes into the log, and says where."""
    node.transition(Job, write(name))
    if fail:
        raise RuntimeError("the method fails")
    return Receipt(len(node.data(Job).log), name)


@method(int)
def size(node: Node) -> int:
    return len(node.data(Job).log)


async def test_repeated_call_returns_the_first_result_and_changes_nothing(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        first = await engine.call(ref, append("a"), request_id="r1")
        assert first == Receipt(1, "a")
        assert await engine.call(ref, append("b"), request_id="r2") == Receipt(2, "b")

        assert await engine.call(ref, append("a"), request_id="r1") == first
        assert await engine.read(ref, log) == ["a", "b"]

    async with TestEngine(world.registry, await database.open()) as engine:
        assert await engine.call(ref, append("other"), request_id="r1") == first
        assert await engine.read(ref, log) == ["a", "b"]


async def test_call_is_repeated_after_an_outcome_that_nobody_knows(world: World, database: Database) -> None:
    store = FaultyStore(database.store)

    async def lose_answer(call: StoreCall) -> None:
        if call.method == "multi":
            store.after = None
            raise storage.CommitOutcomeUnknownError("the line was cut")

    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        store.after = lose_answer
        with pytest.raises(CommitOutcomeUnknownError):
            await engine.call(ref, append("a"), request_id="r")
        assert await engine.call(ref, append("a"), request_id="r") == Receipt(1, "a")
        assert await engine.read(ref, log) == ["a"]


async def test_call_that_was_not_committed_is_made_anew(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        store.cut_off_at(store.writes + 1, carried_out=False)
        with pytest.raises(StorageUnavailableError):
            await engine.call(ref, append("a"), request_id="r")
        store.reconnect()
        assert await engine.call(ref, append("a"), request_id="r") == Receipt(1, "a")
        assert await engine.read(ref, log) == ["a"]


async def test_one_request_from_many_sides_is_carried_out_once(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        ref = await started(one)
        engines = [one, other] * 10
        calls = [engine.call(ref, append("a"), request_id="r") for engine in engines]
        assert set(await asyncio.gather(*calls)) == {Receipt(1, "a")}
        assert await one.read(ref, log) == ["a"]


async def test_reference_that_the_call_itself_has_made_stale_is_no_obstacle(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        key = (await started(engine)).execution
        ref = await engine.read(Ref(key), lambda node: node.ref(key))
        ref = attrs.evolve(ref, transition_count=1)
        await engine.update(Ref(key), note("x"))
        first = await engine.call(ref, append("a"), request_id="r")
        assert await engine.call(ref, append("a"), request_id="r") == first
        with pytest.raises(StaleReferenceError):
            await engine.call(ref, append("b"), request_id="another")


async def test_result_is_told_of_a_closed_execution(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        first = await engine.call(ref, append("a"), request_id="r")
        await engine.terminate(ref.execution)

        assert await engine.call(ref, append("a"), request_id="r") == first
        with pytest.raises(ExecutionClosedError):
            await engine.call(ref, append("b"), request_id="another")


async def test_call_that_raises_changes_nothing_and_is_not_remembered(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(RuntimeError, match="the method fails"):
            await engine.call(ref, append("a", fail=True), request_id="r")
        assert await engine.read(ref, log) == []
        assert await engine.call(ref, append("b"), request_id="r") == Receipt(1, "b")


async def test_call_that_changes_nothing_has_its_result_kept(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        assert await engine.call(ref, size(), request_id="r") == 0
        await engine.update(ref, note("a"))
        assert await engine.call(ref, size(), request_id="r") == 0
        assert await engine.call(ref, size(), request_id="another") == 1


async def test_request_id_belongs_to_one_method(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.call(ref, append("a"), request_id="r")
        with pytest.raises(DuplicateRequestError, match="'append'"):
            await engine.call(ref, size(), request_id="r")


async def test_only_the_latest_results_are_kept(world: World, database: Database) -> None:
    options = EngineOptions(remembered_requests=3, shard_count=1)
    async with TestEngine(world.registry, database.store, options) as engine:
        ref = await started(engine)
        for number in range(5):
            await engine.call(ref, append(f"c{number}"), request_id=f"r/{number}")
        assert [key.rpartition("/")[2] for key in await database.keys("u/")] == [
            "call:r%2F2",
            "call:r%2F3",
            "call:r%2F4",
        ]
        assert await engine.call(ref, append("c2"), request_id="r/2") == Receipt(3, "c2")
        # What is forgotten is somebody new.
        assert await engine.call(ref, append("c0"), request_id="r/0") == Receipt(6, "c0")
        # Requests of other kinds take up room, too.
        await engine.signal(ref, note("s"), request_id="s1")
        await engine.signal(ref, note("s"), request_id="s2")
        assert len(await database.keys("u/")) == 1


async def test_results_go_with_their_execution(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.call(ref, append("a"), request_id="r")
        assert len(await database.keys("u/")) == 1
        await engine.delete(ref.execution, force=True)
    assert await database.keys("u/") == []


async def test_call_below_the_root_loads_what_it_needs(world: World, database: Database) -> None:
    options = small(loaded_nodes=1)
    async with TestEngine(world.registry, database.store, options) as engine:
        ref = await started(engine)
        for number in range(4):
            await engine.update(ref, add_child(str(number)))
    async with TestEngine(world.registry, database.store, options) as engine:
        child = Ref(ref.execution, (step("2"),))
        assert await engine.call(child, append("x"), request_id="r") == Receipt(1, "x")
        assert await engine.call(child, append("x"), request_id="r") == Receipt(1, "x")
        assert await engine.read(child, lambda node: list(node.data(Step).log)) == ["x"]


async def test_call_under_a_task_ends_the_task(world: World, database: Database) -> None:
    results: list[Receipt] = []

    async def run(env: Environment, ref: Ref, task: Soon) -> None:
        engine = environment_as(env, Engine)
        results.append(await engine.call(ref, append("once"), request_id=ref.task_id))

    world.on(Soon, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Soon("soon"))
        await engine.drain()
        assert results == [Receipt(1, "once")]
        assert await pending(engine, ref) == []
    assert await database.queued() == []


async def test_task_acts_once_on_another_execution(world: World, database: Database) -> None:
    """With the task's id as request id, whatever is tried again."""

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        engine = environment_as(env, Engine)
        await engine.signal(Ref(job("other")), note(task.name), request_id=ref.task_id)
        if ref.attempt < 3:
            raise RuntimeError("after the signal")

    world.on(Lasting, run)
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine, "other")
        await started(engine, "job", Lasting("told"))
        await engine.run_until_idle()
        assert [run.attempt for run in world.runs] == [1, 2, 3]
        assert await engine.read(Ref(job("other")), log) == ["told"]


async def test_repeated_signal_does_nothing(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        for _ in range(3):
            await engine.signal(ref, append("a"), request_id="r")
        # A call is another request, though its id is the same.
        await engine.call(ref, append("b"), request_id="r")
        assert await engine.read(ref, log) == ["a", "b"]


async def test_signal_asks_for_tasks_like_any_update(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        for _ in range(2):
            await engine.signal(ref, ask(Soon("soon")), request_id="r")
        await engine.drain()
        assert world.names() == ["soon"]


async def test_request_without_an_id_is_refused(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(ValueError, match="needs an id"):
            await engine.signal(ref, note("a"), request_id="")
        with pytest.raises(ValueError, match="needs an id"):
            await engine.call(ref, size(), request_id="")


async def test_call_with_start_starts_once_and_returns_the_first_result(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        for _ in range(2):
            receipt = await engine.call_with_start(
                job(), Job(), append("a"), request_id="r", on_start=note("start")
            )
            assert receipt == Receipt(2, "a")
        assert await engine.call_with_start(job(), Job(), append("b"), request_id="s") == Receipt(3, "b")
        assert await engine.read(Ref(job()), log) == ["start", "a", "b"]
        assert await engine.count() == 1

        await engine.update(Ref(job()), finish())
        allow = ReusePolicy.ALLOW
        # The execution is closed, the results are known all the same.
        for _ in range(2):
            receipt = await engine.call_with_start(job(), Job(), append("b"), request_id="s", reuse=allow)
            assert receipt == Receipt(3, "b")
        assert await engine.count() == 1
        assert await engine.call_with_start(
            job(), Job(), append("c"), request_id="t", reuse=allow
        ) == Receipt(1, "c")
        assert await engine.count() == 2


async def test_signal_with_start_from_many_sides(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        signals = [
            engine.signal_with_start(job(), Job(), note(name), request_id=name)
            for name in ("a", "b", "c")
            for engine in (one, other, one)
        ]
        await asyncio.gather(*signals)
        assert sorted(await one.read(Ref(job()), log)) == ["a", "b", "c"]
        assert await one.count() == 1


async def test_call_with_start_whose_answer_was_lost(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        store.cut_off_at(store.writes + 1, carried_out=True)
        with pytest.raises(StorageUnavailableError):
            await engine.call_with_start(job(), Job(), append("a"), request_id="r")
        store.reconnect()
        assert await engine.call_with_start(job(), Job(), append("a"), request_id="r") == Receipt(1, "a")
        assert await engine.read(Ref(job()), log) == ["a"]


async def test_run_that_is_named_is_not_started_beside_another_one(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        for reuse in (ReusePolicy.REJECT, ReusePolicy.ALLOW):
            with pytest.raises(ExecutionAlreadyStartedError) as raised:
                await asyncio.wait_for(
                    engine.call_with_start(
                        job()._replace(run_id="other"), Job(), append("a"), request_id="r", reuse=reuse
                    ),
                    2,
                )
            assert (raised.value.run_id, raised.value.closed) == (ref.execution.run_id, False)
        assert await engine.call_with_start(ref.execution, Job(), append("a"), request_id="r") == Receipt(
            1, "a"
        )


@method(None)
def nothing(node: Node) -> None: ...


@method(str)
def text(node: Node) -> str:
    return "é\ud7ff"


@method(bytes)
def raw(node: Node) -> bytes:
    return b"\0\xff"


@method(bool)
def yes(node: Node) -> bool:
    return True


@method(list[timedelta])
def many(node: Node) -> list[timedelta]:
    return [timedelta(microseconds=3)]


@method(StateMachineKey)
def message(node: Node) -> StateMachineKey:
    return StateMachineKey(type=3, id="x")


class KeyCodec:
    """A codec of one's own."""

    def serialize(self, result: Key, /) -> bytes:
        return str(result).encode()

    def deserialize(self, data: bytes, /) -> Key:
        type_id, _, id_ = data.decode().partition(":")
        return Key(int(type_id), id_)


@method(KeyCodec(), name="own")
def key_of(node: Node) -> Key:
    return Key(7, "seven")


RESULTS: list[tuple[Call[Any], object]] = [
    (nothing(), None),
    (text(), "é\ud7ff"),
    (raw(), b"\0\xff"),
    (yes(), True),
    (many(), [timedelta(microseconds=3)]),
    (message(), StateMachineKey(type=3, id="x")),
    (key_of(), Key(7, "seven")),
]


@pytest.mark.parametrize(("call", "result"), RESULTS, ids=lambda value: getattr(value, "name", ""))
async def test_results_come_back_as_they_were(
    world: World, database: Database, call: Call[Any], result: object
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        for _ in range(2):
            answer = await engine.call(ref, call, request_id="r")
            assert answer == result
            assert type(answer) is type(result)


@method(int)
def wrong(node: Node) -> int:
    node.transition(Job, write("wrong"))
    return True


async def test_result_of_another_class_is_refused_and_nothing_is_changed(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(SerializationError, match="bool is not a int"):
            await engine.call(ref, wrong(), request_id="r")
        assert await engine.read(ref, log) == []


async def test_result_is_no_part_of_the_tree(world: World, database: Database) -> None:
    @method(list[str])
    def whole(node: Node) -> list[str]:
        return node.data(Job).log

    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        (await engine.call(ref, whole(), request_id="r")).append("x")
        assert await engine.read(ref, log) == []


def test_method_says_what_it_is() -> None:
    assert append.__doc__ == "Writes into the log, and says where."
    assert repr(append) == "<Method append>"
    assert (append.name, key_of.name) == ("append", "own")
    assert append("a").name == "append"
