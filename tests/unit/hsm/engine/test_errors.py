"""Errors of tasks: what becomes of a task that met each of them, from the executor to the row."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from hsm import (
    BusyError,
    CommitConflictError,
    CommitOutcomeUnknownError,
    DestinationDownError,
    Environment,
    ExecutionClosedError,
    IncompatibleTypeError,
    InvalidTaskKindError,
    InvalidTransitionError,
    NotActiveError,
    NotRegisteredError,
    PausedError,
    RateLimitError,
    Ref,
    SerializationError,
    StaleReferenceError,
    StaleStateError,
    StateMachineNotFoundError,
    TerminalError,
    TransactionTooLargeError,
)
from hsm.engine import Backoff, DeadLetter
from hsm.errors import ExecutionNotFoundError, StorageUnavailableError
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Lasting,
    Soon,
    Step,
    World,
    ask,
    failing,
    log,
    noted,
    pending,
    small,
    started,
    step,
)

SECOND = timedelta(seconds=1)
EXACT = Backoff(initial=SECOND, maximum=timedelta(minutes=1), factor=2.0, jitter=0.0)

DROPPED = [StaleReferenceError("x"), ExecutionClosedError("x"), ExecutionNotFoundError("x")]
UNCOUNTED = [
    StaleStateError("x"),
    CommitConflictError("x"),
    CommitOutcomeUnknownError("x"),
    StorageUnavailableError("x"),
    BusyError("x"),
    RateLimitError("x"),
    PausedError("x"),
    NotActiveError("x"),
]
TERMINAL = [
    NotRegisteredError("x"),
    SerializationError("x"),
    IncompatibleTypeError("x"),
    InvalidTaskKindError("x"),
    TransactionTooLargeError("x"),
    TerminalError("x"),
]
COUNTED = [
    InvalidTransitionError("x"),
    StateMachineNotFoundError("x", path=(step("somebody else"),)),
    OSError("x"),
    KeyError("x"),
    TimeoutError("x"),
    asyncio.CancelledError("x"),
]


def name(value: object) -> str:
    return type(value).__name__


async def dead(engine: TestEngine) -> list[DeadLetter]:
    return [letter async for letter in engine.dead_letters()]


@pytest.mark.parametrize(
    "error", [*DROPPED, StateMachineNotFoundError("x"), DestinationDownError()], ids=name
)
async def test_dropped_at_once(world: World, database: Database, error: Exception) -> None:
    world.on(Soon, failing(error))
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Soon("task"))
        await engine.run_until_idle()
        assert [run.attempt for run in world.runs] == [1]
        assert await dead(engine) == []
        assert await pending(engine, ref) == []
    assert await database.queued() == []


@pytest.mark.parametrize("error", [*UNCOUNTED, DestinationDownError(BusyError("x"))], ids=name)
async def test_retried_uncounted_and_never_dead_lettered(
    world: World, database: Database, error: Exception
) -> None:
    world.on(Soon, failing(*[error] * 20, None))
    async with TestEngine(world.registry, database.store, small(max_attempts=2, backoff=EXACT)) as engine:
        ref = await started(engine, "job", Soon("task"))
        await engine.run_until_idle()
        assert [run.attempt for run in world.runs] == [1] * 21
        pauses = [b.time - a.time for a, b in zip(world.runs, world.runs[1:], strict=False)]
        assert pauses[:7] == [seconds * SECOND for seconds in (1, 2, 4, 8, 16, 32, 60)]
        assert await engine.read(ref, log) == ["task"]
        assert await dead(engine) == []
    assert await database.queued() == []


@pytest.mark.parametrize("error", [*TERMINAL, DestinationDownError(TerminalError("x"))], ids=name)
async def test_dead_lettered_at_once(world: World, database: Database, error: Exception) -> None:
    world.on(Soon, failing(error))
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Soon("task"))
        await engine.run_until_idle()
        assert len(world.runs) == 1
        (letter,) = await dead(engine)
        cause = error.inner if isinstance(error, DestinationDownError) else error
        assert letter.error_type == type(cause).__name__
        assert (letter.execution, letter.path, letter.task_type) == (ref.execution, (), "soon")
        assert (letter.attempts, letter.time) == (1, engine.now())
        assert await pending(engine, ref) == ["soon"]
        (task,) = (await engine.describe(ref.execution)).nodes[0].tasks
        assert "dead-lettered" in task.last_error
    await database.check()


@pytest.mark.parametrize("error", [*COUNTED, DestinationDownError(OSError("x"))], ids=name)
async def test_retried_and_in_the_end_dead_lettered(
    world: World, database: Database, error: BaseException
) -> None:
    world.on(Soon, failing(error))
    async with TestEngine(world.registry, database.store, small(max_attempts=3, backoff=EXACT)) as engine:
        await started(engine, "job", Soon("task"))
        start = engine.now()
        await engine.run_until_idle()
        assert [(run.attempt, run.time - start) for run in world.runs] == [
            (1, 0 * SECOND),
            (2, 1 * SECOND),
            (3, 3 * SECOND),
        ]
        (letter,) = await dead(engine)
        assert letter.attempts == 3
    await database.check()


async def test_machine_of_its_own_that_is_missing_drops_the_task(world: World, database: Database) -> None:
    async def run(env: Environment, ref: Ref, task: Soon) -> None:
        raise StateMachineNotFoundError("gone", path=ref.path)

    world.on(Soon, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: ask(Soon("x"))(root.add_child(step("a"), Step())))
        await engine.run_until_idle()
        assert len(world.runs) == 1
        assert await dead(engine) == []


async def test_down_destination_says_when_to_try_again(world: World, database: Database) -> None:
    asked = timedelta(minutes=5)
    world.on(
        Soon, failing(DestinationDownError(OSError("x"), asked), BusyError("x", retry_after=asked), None)
    )
    async with TestEngine(world.registry, database.store, small(backoff=EXACT)) as engine:
        start = engine.now()
        await started(engine, "job", Soon("task"))
        await engine.run_until_idle()
    assert [run.time - start for run in world.runs] == [0 * asked, asked, 2 * asked]


async def test_success_after_failures(world: World, database: Database) -> None:
    world.on(Soon, failing(OSError("1"), OSError("2"), None))
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Soon("task"))
        await engine.skip_to_next()
        (task,) = (await engine.describe(ref.execution)).nodes[0].tasks
        assert (task.failures, task.last_error) == (2, "OSError: 2")
        assert task.not_before is not None
        assert task.not_before > engine.now()
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["task"]
    assert [run.attempt for run in world.runs] == [1, 2, 3]


@pytest.mark.parametrize(
    "task", [Soon("x"), Lasting("x"), Alarm("x", datetime.fromisoformat("2030-01-01T00:00:00Z"))]
)
async def test_attempts_and_their_pauses_survive_restarts(
    world: World, database: Database, clock: FakeClock, task: Any
) -> None:
    world.on(type(task), failing(OSError("x")))
    options = small(max_attempts=6, backoff=EXACT)
    start = clock.now()
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        await started(engine, "job", task)
        await engine.drain()
    for _ in range(5):
        async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
            await engine.drain()
            await engine.skip_to_next()
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        (letter,) = await dead(engine)
        assert letter.attempts == 6

    assert [(run.attempt, (run.time - start) // SECOND) for run in world.runs] == [
        (1, 0),
        (2, 1),
        (3, 3),
        (4, 7),
        (5, 15),
        (6, 31),
    ]


async def test_pauses_are_spread_by_chance(world: World, database: Database) -> None:
    world.on(Soon, failing(OSError("x"), None))
    async with TestEngine(world.registry, database.store, small(backoff=Backoff(jitter=0.5))) as engine:
        start = engine.now()
        for number in range(20):
            world.on(Soon, failing(OSError("x")))
            await started(engine, str(number), Soon(str(number)))
        await engine.drain()
        await engine.skip(SECOND)
        second = [run.time - start for run in world.runs if run.attempt == 2]
    assert len(second) == 20
    assert len(set(second)) == 20
    assert all(SECOND / 2 <= pause <= SECOND for pause in second)


async def test_executor_that_takes_too_long_is_cancelled(database: Database, clock: FakeClock) -> None:
    world = World(timeout=timedelta(seconds=5))
    cancelled: list[datetime] = []
    begun = asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        if ref.attempt > 1:
            await noted(env, ref, task)
            return
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(env.now())

    world.on(Lasting, hang)
    async with TestEngine(world.registry, database.store, small(backoff=EXACT), clock=clock) as engine:
        ref = await started(engine, "job", Lasting("call"))
        start = clock.now()
        await begun.wait()
        clock.advance(timedelta(seconds=5))
        await engine.drain()
        assert cancelled == [start + timedelta(seconds=5)]
        (task,) = (await engine.describe(ref.execution)).nodes[0].tasks
        assert task.last_error.startswith("TimeoutError")
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["call"]
