"""Circuit breakers: a destination that is down is left alone, asked again with one task, and taken back."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import attrs
import pytest
from hypothesis import given, strategies as st

from hsm import DestinationDownError, Environment, Ref, StaleReferenceError, TerminalError
from hsm.engine import Breaker, BreakerState, QueueInfo
from hsm.engine._gates import Circuit
from hsm.errors import BusyError
from hsm.testing import FakeClock, FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import Lasting, Soon, World, failing, idle, log, noted, small, started

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
DOWN = DestinationDownError(OSError("refused"))
BREAKER = Breaker(failures=3, open_time=MINUTE)


def queue_of(engine: TestEngine, destination: str | None = "there") -> QueueInfo:
    (queue,) = [queue for queue in engine.queues() if queue.destination == destination]
    return queue


class Destination:
    """What all the destinations do: answer, or not. Remembers when it was called."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.calls: list[str] = []

    async def __call__(self, env: Environment, ref: Ref, task: Lasting) -> None:
        self.calls.append(task.destination)
        if self.error is not None:
            raise self.error
        await noted(env, ref, task)


@pytest.fixture
def there(world: World) -> Destination:
    destination = Destination()
    world.on(Lasting, destination)
    return destination


async def broken(engine: TestEngine, there: Destination) -> None:
    """Let a destination fail often enough, by machines that note that themselves."""
    there.error = DestinationDownError()
    for number in range(3):
        await started(engine, f"broken-{number}", Lasting("x"))
    await engine.drain()
    assert queue_of(engine).breaker is BreakerState.OPEN
    there.calls.clear()


async def test_failures_in_a_row_open_the_breaker_and_a_success_closes_it(
    world: World, database: Database, there: Destination
) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=BREAKER)) as engine:
        await broken(engine, there)
        there.error = None
        refs = [await started(engine, str(number), Lasting("call")) for number in range(5)]
        await engine.skip(MINUTE - SECOND)
        assert there.calls == []
        assert (queue_of(engine).ready, queue_of(engine).failures) == (5, 3)
        await engine.skip(SECOND)
        assert [await engine.read(ref, log) for ref in refs] == [["call"]] * 5
        assert all(queue.breaker is BreakerState.CLOSED for queue in engine.queues())


async def test_open_breaker_starts_writes_and_counts_nothing(
    world: World, database: Database, there: Destination
) -> None:
    store = FaultyStore(database.store)
    options = small(breaker=attrs.evolve(BREAKER, open_time=timedelta(minutes=30)), max_attempts=2)
    async with TestEngine(world.registry, store, options) as engine:
        await broken(engine, there)
        await started(engine, "job", Lasting("call"))
        await engine.drain()
        calls = store.calls
        await engine.skip(29 * MINUTE)
        assert (there.calls, store.calls) == ([], calls)
        there.error = None
        await engine.skip(MINUTE)
        assert world.runs[-1].attempt == 1


async def test_one_task_at_a_time_finds_out_whether_the_destination_is_back(
    world: World, database: Database, there: Destination
) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=BREAKER)) as engine:
        await broken(engine, there)
        for number in range(5):
            await started(engine, str(number), Lasting("call"))
        await engine.skip(MINUTE)
        assert len(there.calls) == 1
        assert queue_of(engine).breaker is BreakerState.OPEN
        await engine.skip(MINUTE)
        assert len(there.calls) == 2
        there.error = None
        await engine.skip(MINUTE)
        assert len(there.calls) == 5


async def test_half_open_breaker_waits_for_its_probe(
    world: World, database: Database, there: Destination, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=BREAKER), clock=clock) as engine:
        await broken(engine, there)
        asked, answer = asyncio.Event(), asyncio.Event()
        begun: list[str] = []

        async def slow(env: Environment, ref: Ref, task: Lasting) -> None:
            begun.append(task.name)
            asked.set()
            await answer.wait()

        world.on(Lasting, slow)
        for number in range(4):
            await started(engine, str(number), Lasting(str(number)))
        clock.advance(MINUTE)
        await asked.wait()
        for _ in range(200):  # others would have begun by now
            await asyncio.sleep(0.001)
        assert begun == ["0"]
        assert queue_of(engine).breaker is BreakerState.HALF_OPEN
        answer.set()
        await engine.drain()
        assert begun == ["0", "1", "2", "3"]


async def test_destination_can_ask_for_a_longer_pause(
    world: World, database: Database, there: Destination
) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=BREAKER)) as engine:
        there.error = DestinationDownError(retry_after=10 * MINUTE)
        for number in range(3):
            await started(engine, str(number), Lasting("x"))
        await engine.drain()
        assert queue_of(engine).open_until == engine.now() + 10 * MINUTE
        there.error = None
        await started(engine, "job", Lasting("call"))
        await engine.skip(9 * MINUTE)
        assert len(there.calls) == 3
        await engine.skip(MINUTE)
        assert len(there.calls) == 4


async def test_success_in_between_begins_the_count_anew(
    world: World, database: Database, there: Destination
) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=BREAKER)) as engine:
        for number in range(9):
            there.error = None if number % 3 == 2 else DestinationDownError()
            await started(engine, str(number), Lasting("x"))
            await engine.drain()
        assert len(there.calls) == 9


async def test_breaker_is_of_one_destination(world: World, database: Database, there: Destination) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=BREAKER)) as engine:
        await broken(engine, there)
        there.error = None
        await started(engine, "there", Lasting("x"))
        await started(engine, "elsewhere", Lasting("x", destination="elsewhere"))
        await engine.drain()
        assert there.calls == ["elsewhere"]


async def test_tasks_that_say_nothing_of_their_destination_do_not_count(
    world: World, database: Database, there: Destination
) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=Breaker(failures=2))) as engine:
        for error in (OSError(), BusyError("x"), StaleReferenceError(), DestinationDownError()) * 2:
            there.error = error
            await started(engine, str(len(there.calls)), Lasting("x"))
            before = queue_of(engine).failures if engine.queues() else 0
            await engine.drain()
            counted = isinstance(error, DestinationDownError)
            assert not engine.queues() or queue_of(engine).failures == before + counted
        assert queue_of(engine).breaker is BreakerState.OPEN


@pytest.mark.parametrize("answer", [None, TerminalError("no such customer")])
async def test_probe_that_turns_out_stale_leaves_the_question_to_the_next(
    world: World, database: Database, there: Destination, answer: BaseException | None
) -> None:
    async with TestEngine(world.registry, database.store, small(breaker=BREAKER)) as engine:
        await broken(engine, there)
        await started(engine, "first", Lasting("first"))
        await started(engine, "second", Lasting("second"))
        await started(engine, "third", Lasting("third"))
        there.error = StaleReferenceError()

        async def stale_then(env: Environment, ref: Ref, task: Lasting) -> None:
            there.calls.append(task.name)
            if task.name == "first":
                raise StaleReferenceError
            if answer is not None:
                raise answer

        world.on(Lasting, stale_then)
        await engine.skip(MINUTE)
        assert there.calls == ["first", "second", "third"]


@pytest.mark.parametrize("counts", [True, False])
async def test_executors_that_take_too_long_count_if_they_are_to(
    database: Database, clock: FakeClock, counts: bool
) -> None:
    world = World(timeout=SECOND)

    begun = asyncio.Semaphore(0)

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.release()
        await asyncio.Event().wait()

    world.on(Lasting, hang)
    options = small(breaker=Breaker(failures=3, timeouts=counts))
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        for number in range(3):
            await started(engine, str(number), Lasting("x"))
        for _ in range(3):
            await begun.acquire()
        clock.advance(SECOND)
        await engine.drain()
        expected = BreakerState.OPEN if counts else BreakerState.CLOSED
        assert queue_of(engine).breaker is expected
        assert "TimeoutError" in queue_of(engine).last_error


async def test_settings_of_a_breaker_change_while_the_engine_runs(
    world: World, database: Database, there: Destination
) -> None:
    settings = {"there": Breaker(failures=3, open_time=timedelta(days=1))}
    options = small(
        breaker_of=lambda namespace, group, destination: settings.get(destination),
        poll_interval=timedelta(minutes=10),
    )
    async with TestEngine(world.registry, database.store, options) as engine:
        await broken(engine, there)
        await engine.skip(MINUTE)
        there.error = None
        await started(engine, "job", Lasting("call"))
        settings["there"] = Breaker(failures=None)
        await engine.skip(timedelta(minutes=20))
        assert there.calls == []
        there.error = DestinationDownError()
        await engine.skip(timedelta(days=1))
        for number in range(10):
            await started(engine, str(number), Lasting("call"))
        await engine.drain()
        assert len(there.calls) == 11


async def test_breaker_that_is_taken_away_lets_everything_through(
    world: World, database: Database, there: Destination
) -> None:
    await_poll = timedelta(minutes=10)
    wanted: list[Breaker | None] = [Breaker(failures=3, open_time=timedelta(days=1))]
    options = small(breaker=None, breaker_of=lambda *_: wanted[0], poll_interval=await_poll)
    async with TestEngine(world.registry, database.store, options) as engine:
        await broken(engine, there)
        there.error = None
        await started(engine, "job", Lasting("call"))
        await engine.skip(await_poll)
        assert there.calls == []
        wanted[0] = None
        await engine.skip(await_poll)
        assert there.calls == ["there"]


async def test_settings_that_cannot_be_told_harm_nobody(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def confused(namespace: str, group: str, destination: str) -> None:
        raise ZeroDivisionError

    options = small(breaker_of=confused, rate_of=confused, concurrency_of=confused)
    world.on(Lasting, failing(DOWN, None))
    async with TestEngine(world.registry, database.store, options) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["call"]
    assert "cannot be told" in caplog.text


async def test_tasks_without_a_destination_have_no_breaker(world: World, database: Database) -> None:
    world.on(Soon, failing(DestinationDownError()))
    async with TestEngine(world.registry, database.store, small(breaker=Breaker(failures=1))) as engine:
        for number in range(5):
            await started(engine, str(number), Soon("x"))
        await engine.drain()
        assert len(world.runs) == 5


async def test_engine_tells_of_its_queues(world: World, database: Database, there: Destination) -> None:
    world.on(Soon, idle)
    options = small(breaker=attrs.evolve(BREAKER, failures=1), concurrency=7)
    async with TestEngine(world.registry, database.store, options) as engine:
        there.error = DestinationDownError(OSError("refused"))
        await started(engine, "job", Lasting("call"), Soon("soon"))
        await engine.drain()
        now = engine.now()
        assert engine.queues() == [
            QueueInfo(
                "tests",
                "lasting",
                "there",
                running=0,
                ready=0,
                waiting=1,
                overflow=False,
                concurrency=7,
                breaker=BreakerState.OPEN,
                failures=1,
                open_until=now + MINUTE,
                last_error="DestinationDownError: destination is down: refused",
                last_error_time=now,
            )
        ]


async def test_destination_that_nobody_has_called_for_long_is_forgotten(
    world: World, database: Database, there: Destination
) -> None:
    there.error = DestinationDownError()
    options = small(breaker=BREAKER, poll_interval=MINUTE)
    async with TestEngine(world.registry, database.store, options) as engine:
        for number in range(20):
            await started(engine, str(number), Lasting("x", destination=str(number)))
        await engine.drain()
        await engine.skip(9 * MINUTE)
        assert len(engine.queues()) == 20
        await engine.skip(3 * MINUTE)
        assert engine.queues() == []


async def test_destination_that_asks_for_eternity_is_told_of_like_any_other(
    world: World, database: Database, there: Destination
) -> None:
    there.error = DestinationDownError(OSError("refused"), retry_after=timedelta.max)
    async with TestEngine(world.registry, database.store, small(breaker=Breaker(failures=1))) as engine:
        await started(engine, "job", Lasting("call"))
        await started(engine, "other", Lasting("call"))
        await engine.drain()
        open_until = queue_of(engine).open_until
        assert open_until is not None
        assert open_until > engine.now() + 365 * 24 * 60 * MINUTE


@pytest.mark.parametrize("well", [True, False])
def test_answer_to_a_call_of_before_is_no_answer_to_the_probe(well: bool) -> None:
    circuit, breaker = Circuit(), Breaker(failures=1, open_time=MINUTE)
    circuit.judge("early", False, 0, breaker, 0)
    now = 61 * 10**9
    assert circuit.closed_until(now) is None
    circuit.let_through("probe")
    circuit.judge("late", well, now, breaker, 0)
    states = [circuit.state]
    assert circuit.closed_until(now) == 0
    circuit.judge("probe", True, now, breaker, 0)
    assert [*states, circuit.state] == [BreakerState.HALF_OPEN, BreakerState.CLOSED]


def test_clock_that_is_put_back_does_not_keep_the_breaker_open() -> None:
    circuit = Circuit()
    circuit.judge("x", False, 3600 * 10**9, Breaker(failures=1, open_time=MINUTE), 0)
    assert circuit.closed_until(3601 * 10**9) == 3660 * 10**9
    assert circuit.closed_until(60 * 10**9) is None


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 90)), max_size=40))
def test_breaker_never_lets_two_ask_at_once_nor_anybody_while_it_is_open(
    steps: list[tuple[bool, bool, int]],
) -> None:
    circuit, breaker = Circuit(), Breaker(failures=2, open_time=MINUTE)
    second = 10**9
    now, row, open_until, running, number = 0, 0, 0, list[str](), 0
    for starts, well, pause in steps:
        now += pause * second
        if starts:
            admitted = circuit.closed_until(now) is None
            probing = circuit.state is BreakerState.HALF_OPEN
            assert admitted == (now >= open_until and not (probing and "probe" in running))
            if admitted:
                number += 1
                circuit.let_through("probe" if row >= 2 else str(number))
                running.append("probe" if row >= 2 else str(number))
        elif running:
            task_id = running.pop()
            late = row >= 2 and task_id != "probe"
            circuit.judge(task_id, well, now, breaker, 0)
            if late:
                continue
            row = 0 if well else row + 1
            open_until = now + 60 * second if row >= 2 else 0
            if well:
                running = [task for task in running if task != "probe"]
