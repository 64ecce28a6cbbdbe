"""Recording: the history of an execution in a journal, once and in order, and its trees from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hsm import ExecutionKey, ExecutionNotFoundError, Key, Node, NoHistoryError, Ref, SerializationError
from hsm.aggregate import EXECUTION_CHANGED, ExecutionRecorder, history_of, recorded_tree
from hsm.testing import FaultyStore, TestEngine
from hsm.testing.faults import Call
from persistence.errors import TransactionTooLargeError
from persistence.journal import NO_VC, Event, Journal, NewEvent
from persistence.proto.nogevents_pb2 import Event as Message
from tests.support.databases import Database, new_database
from tests.support.jobs import Job, World, add_child, job, log, note, step


@pytest.fixture(params=["memory", "sqlite"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with new_database(request.param, tmp_path) as opened:
        yield opened


def picture(node: Node) -> list[tuple[tuple[Key, ...], int, list[str]]]:
    return [(each.path, each.transition_count, log(each)) for each in node.walk()]


async def recorded(journal: Journal, ref: Ref) -> list[Event]:
    return [event async for event in journal.find(history_of(ref.execution))]


async def test_every_commit_is_recorded_once_and_in_order(database: Database) -> None:
    world = World()
    async with TestEngine(world.registry, database.store) as engine:
        journal = Journal(database.store, "executions")
        recorder, other = ExecutionRecorder(engine, journal), ExecutionRecorder(engine, journal)
        ref = await engine.start(job(), Job(), on_start=note("start"), history=True)
        assert await recorder.record(job()) == 1
        for update in (note("x"), add_child("a"), add_child("b"), lambda root: root.delete_child(step("a"))):
            await engine.update(ref, update)
        counts = await asyncio.gather(recorder.record(ref.execution), other.record(ref.execution))

        events = await recorded(journal, ref)
        assert (sum(counts), len(events)) == (4, 5)
        assert {event.message().type_name for event in events} == {EXECUTION_CHANGED}
        for count in range(1, 6):
            there = picture(recorded_tree(world.registry, events[:count]))
            assert there == picture(await engine.tree_at(job(), count))
        assert await recorder.record(job()) == 0


async def test_many_commits_are_recorded_in_parts(database: Database) -> None:
    world = World()
    async with TestEngine(world.registry, database.store) as engine:
        journal = Journal(database.store, "executions")
        ref = await engine.start(job(), Job(), history=True)
        for number in range(120):
            await engine.update(ref, note(str(number)))

        assert await ExecutionRecorder(engine, journal).record(job()) == 121
        events = await recorded(journal, ref)
        assert log(recorded_tree(world.registry, events)) == [str(number) for number in range(120)]


async def test_commits_that_do_not_fit_together_are_recorded_in_smaller_parts(database: Database) -> None:
    world = World()
    store = FaultyStore(database.store)
    most = 12

    async def limit(call: Call) -> None:
        if call.method == "multi" and isinstance(call.request, list) and len(call.request) > most:
            raise TransactionTooLargeError("too large")

    store.before = limit
    async with TestEngine(world.registry, database.store) as engine:
        recorder = ExecutionRecorder(engine, Journal(store, "executions"))
        ref = await engine.start(job(), Job(), history=True)
        for number in range(40):
            await engine.update(ref, note(str(number)))

        assert await recorder.record(job()) == 41
        assert len(await recorded(Journal(database.store, "executions"), ref)) == 41
        await engine.update(ref, note("last"))
        most = 2
        with pytest.raises(TransactionTooLargeError):
            await recorder.record(job())


async def test_what_was_recorded_is_not_read_again(database: Database) -> None:
    world = World()
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        recorder = ExecutionRecorder(engine, Journal(database.store, "executions"))
        ref = await engine.start(job(), Job(), history=True)
        for number in range(20):
            await engine.update(ref, note(str(number)))
        await recorder.record(ref.execution)
        assert [entry.version.transition_count async for entry in engine.history(job(), after=19)] == [
            20,
            21,
        ]
        starts: list[int] = []

        async def look(call: Call) -> None:
            if call.method == "scan" and isinstance(call.request, tuple):
                start = str(call.request[1])
                starts.extend([int(start.rpartition("/")[2])] if start.startswith("h/") else [])

        await engine.update(ref, note("last"))
        store.before = look
        assert await recorder.record(ref.execution) == 1
        assert starts == [22, 23]


async def test_recorder_follows_an_execution(database: Database) -> None:
    world = World()
    async with TestEngine(world.registry, database.store) as engine:
        journal = Journal(database.store, "executions")
        ref = await engine.start(job(), Job(), history=True)
        child = Ref(ref.execution, (step("a"),))
        following = asyncio.create_task(ExecutionRecorder(engine, journal).follow(ref))
        async with asyncio.timeout(60), journal.subscribe(history_of(ref.execution)) as subscription:
            for count, (where, update) in enumerate(
                [(ref, note("x")), (ref, add_child("a")), (child, note("y")), (child, note("z"))], 2
            ):
                await engine.update(where, update)
                while len(await recorded(journal, ref)) < count:
                    await subscription.wait()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        assert log(recorded_tree(world.registry, await recorded(journal, ref)).child([step("a")])) == [
            "y",
            "z",
        ]


async def test_what_cannot_be_recorded_or_read_is_told(database: Database) -> None:
    world = World()
    async with TestEngine(world.registry, database.store) as engine:
        journal = Journal(database.store, "executions")
        recorder = ExecutionRecorder(engine, journal)
        with pytest.raises(ExecutionNotFoundError):
            await recorder.record(job())
        ref = await engine.start(job(), Job())
        assert await recorder.record(job()) == 0
        with pytest.raises(NoHistoryError):
            recorded_tree(world.registry, await recorded(journal, ref))
        with pytest.raises(ValueError, match="run"):
            history_of(ExecutionKey("tests", "job"))
        await journal.commit(
            history_of(ref.execution), [NewEvent.of(Message(event=Message.EV_SNAPSHOT_END))], NO_VC
        )
        with pytest.raises(SerializationError):
            recorded_tree(world.registry, await recorded(journal, ref))
