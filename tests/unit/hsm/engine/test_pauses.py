"""Pauses: tasks that wait for their next try are in nobody's way, bounded in memory, and come back in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from hsm import DestinationDownError, Environment, OutboundKind, Ref, Task
from hsm.engine import Backoff
from hsm.errors import BusyError
from hsm.testing import Call as StoreCall, CutOffError, FakeClock, FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Lasting,
    Ring,
    Run,
    Soon,
    World,
    failing,
    log,
    noted,
    pending,
    small,
    started,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
HOURLY = Backoff(initial=HOUR, maximum=HOUR, jitter=0)

ERRORS = pytest.mark.parametrize(
    "error",
    [OSError("counted"), BusyError("not counted", retry_after=HOUR), DestinationDownError(OSError(), HOUR)],
    ids=["counted", "not counted", "destination down"],
)


class Failing:
    """An executor that fails for tasks whose name says so, until told otherwise."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error

    async def __call__(self, env: Environment, ref: Ref, task: Lasting) -> None:
        if self.error is not None and task.name.startswith("fails"):
            raise self.error
        await noted(env, ref, task)


@ERRORS
async def test_tasks_in_a_pause_keep_no_others_of_their_queue_from_running(
    world: World, database: Database, error: BaseException
) -> None:
    world.on(Lasting, Failing(error))
    options = small(queue_buffer=2, timer_window=3, backoff=HOURLY, breaker=None)
    async with TestEngine(world.registry, database.store, options) as engine:
        for number in range(20):
            await started(engine, f"f{number}", Lasting("fails"))
        await engine.drain()
        fresh = [await started(engine, str(number), Lasting("fresh")) for number in range(10)]
        await engine.drain()
        assert [await engine.read(ref, log) for ref in fresh] == [["fresh"]] * 10


@ERRORS
async def test_tasks_in_a_pause_do_not_fill_the_memory_and_none_is_lost(
    world: World, database: Database, error: BaseException
) -> None:
    executor = Failing(error)
    world.on(Lasting, executor)
    options = small(queue_buffer=2, timer_window=3, backoff=HOURLY, breaker=None, shard_count=1)
    async with TestEngine(world.registry, database.store, options) as engine:
        refs = [await started(engine, f"f{number}", Lasting("fails")) for number in range(30)]
        await engine.drain()
        # So many wait uncounted, so many as timers, and one is on its way.
        assert len(engine._dispatcher) <= 2 + 2 * 3 + 1
        await database.check()
        executor.error = None
        await engine.skip(HOUR)
        assert [await engine.read(ref, log) for ref in refs] == [["fails"]] * 30
    assert await database.queued() == []


@ERRORS
async def test_pause_ends_neither_early_nor_late(
    world: World, database: Database, clock: FakeClock, error: BaseException
) -> None:
    world.on(Lasting, Failing(error))
    options = small(queue_buffer=2, timer_window=3, backoff=HOURLY, breaker=None)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        for number in range(9):
            await started(engine, str(number), Lasting("fails"))
        await engine.skip(HOUR - SECOND)
        assert len(world.runs) == 9
        await engine.skip(SECOND)
        assert len(world.runs) == 18
        assert len({run.time for run in world.runs}) == 2


async def test_pause_that_an_error_asks_for_survives_a_restart_if_it_is_written(
    world: World, database: Database, clock: FakeClock
) -> None:
    world.on(Lasting, failing(DestinationDownError(OSError("x"), HOUR), None))
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        await engine.skip(HOUR - SECOND)
        assert len(world.runs) == 1
        await engine.skip(SECOND)
        assert await engine.read(ref, log) == ["call"]
        assert world.runs[-1] == Run("call", 2, engine.now())


@pytest.mark.parametrize(("buffer", "window"), [(2, 3), (1, 1), (3, 2)])
async def test_timers_of_a_group_that_hangs_delay_no_others(
    world: World, database: Database, clock: FakeClock, buffer: int, window: int
) -> None:
    """Its queue is full, and so would be the window."""
    hanging, free = asyncio.Event(), asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Alarm) -> None:
        hanging.set()
        await free.wait()
        await noted(env, ref, task)

    world.on(Alarm, hang)
    options = small(queue_buffer=buffer, timer_window=window, concurrency=1, shard_count=1, task_timeout=None)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        due = clock.now() + HOUR
        ref = await started(engine, "hangs", *[Alarm(str(number), due) for number in range(20)])
        good = await started(engine, "rings", Ring("rings", due + SECOND))
        clock.advance(HOUR)
        await hanging.wait()
        clock.advance(SECOND)
        await engine.wait(good, lambda node: log(node) == ["rings"], timeout=None)
        assert len(engine._dispatcher) <= buffer + 2 * window + 1
        free.set()
        await engine.drain()
        assert len(await engine.read(ref, log)) == 20
    assert await database.queued() == []


async def test_timer_that_fails_delays_no_other_of_its_execution(
    world: World, database: Database, clock: FakeClock
) -> None:
    world.on(Alarm, failing(OSError("x")))
    async with TestEngine(world.registry, database.store, small(backoff=HOURLY), clock=clock) as engine:
        due = clock.now() + SECOND
        ref = await started(engine, "job", Alarm("fails", due), Ring("rings", due), Soon("soon"))
        await engine.skip(SECOND)
        assert sorted(await engine.read(ref, log)) == ["rings", "soon"]
        assert await pending(engine, ref) == ["alarm"]


async def test_row_that_could_not_be_moved_is_found_again(
    world: World, database: Database, clock: FakeClock
) -> None:
    """Though polls have passed it by, as one that is in memory."""
    store = FaultyStore(database.store)
    answer = asyncio.Event()

    async def call(env: Environment, ref: Ref, task: Lasting) -> None:
        if task.name == "last" and not answer.is_set():
            await answer.wait()
            raise BusyError("x", retry_after=HOUR)
        if not answer.is_set():
            raise BusyError("x", retry_after=HOUR)
        await noted(env, ref, task)

    async def refuse(call: StoreCall) -> None:
        if call.method == "multi":
            raise CutOffError

    world.on(Lasting, call)
    options = small(queue_buffer=40, shard_count=1, poll_interval=SECOND, task_timeout=None)
    async with TestEngine(world.registry, store, options, clock=clock) as engine:
        names = [str(number) for number in range(40)]
        refs = {
            name: await started(engine, name, Lasting(name)) for name in [*names[:35], "last", *names[35:]]
        }
        for _ in range(20):
            clock.advance(SECOND)
            for _ in range(20):
                await asyncio.sleep(0.001)
        store.before = refuse
        answer.set()
        await engine.drain()
        assert not await database.keys("t/")
        assert len(engine._dispatcher) == 40
        store.before = None
        await engine.skip(2 * SECOND)
        assert await engine.read(refs["last"], log) == ["last"]
        await engine.skip(HOUR)
        assert [await engine.read(ref, log) for ref in refs.values()] == [[name] for name in refs]
    assert await database.queued() == []


async def test_pauses_depend_on_the_task_and_on_the_error(
    world: World, database: Database, clock: FakeClock
) -> None:
    def backoff_of(task: Task, error: Exception) -> Backoff | None:
        if isinstance(error, PermissionError):
            return HOURLY
        if isinstance(task.kind, OutboundKind) and task.kind.destination == "patient":
            return Backoff(initial=timedelta(minutes=1), factor=1, jitter=0)
        return None

    options = small(backoff=Backoff(initial=SECOND, factor=1, jitter=0), backoff_of=backoff_of)
    world.on(Soon, failing(PermissionError(), None))
    world.on(Lasting, failing(OSError(), OSError(), BusyError("x"), None))
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        begin = engine.now()
        await started(engine, "soon", Soon("soon"))
        await engine.run_until_idle()
        assert [run.time - begin for run in world.runs] == [timedelta(), HOUR]
        world.runs.clear()
        begin = engine.now()
        await started(engine, "call", Lasting("call", destination="patient"))
        await engine.run_until_idle()
        assert [(run.time - begin) / timedelta(minutes=1) for run in world.runs] == [0, 1, 2, 3]


async def test_backoff_that_cannot_be_told_is_the_usual_one(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def confused(task: Task, error: Exception) -> None:
        raise ZeroDivisionError

    world.on(Soon, failing(OSError(), None))
    async with TestEngine(world.registry, database.store, small(backoff_of=confused)) as engine:
        ref = await started(engine, "job", Soon("soon"))
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["soon"]
    assert "backoff_of" in caplog.text


@pytest.mark.parametrize("wrong", [{"initial": -SECOND}, {"factor": 0.5}, {"jitter": 2.0}])
def test_impossible_backoff_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Backoff(**wrong)  # type: ignore[arg-type]  # values of the right types, in one dictionary


async def test_withdrawn_task_in_a_pause_does_not_run_again(
    world: World, database: Database, clock: FakeClock
) -> None:
    from tests.support.jobs import note

    world.on(Lasting, failing(OSError()))
    async with TestEngine(world.registry, database.store, small(backoff=HOURLY), clock=clock) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()
        await engine.update(ref, note("end"))
        await engine.skip(2 * HOUR)
        assert world.names() == ["call"]
    assert await database.queued() == []
