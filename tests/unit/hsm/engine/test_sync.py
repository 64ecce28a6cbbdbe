"""Engines for code without asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from hsm import AccessClosedError, Environment, ExecutionNotFoundError, Node, Ref, TerminalError
from hsm.engine import Engine, SyncEngine, SyncEnvironment, in_thread
from hsm.engine._calls import Calls
from hsm.machine import Lifecycle
from hsm.testing import FakeClock
from persistence import UnknownSchemeError, connect, require
from persistence.store import EngineStore
from tests.support.jobs import Call, Job, Lasting, World, ask, finish, idle, job, log, note, small


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else "memory://"


def test_executions_are_started_changed_and_read(world: World, url: str) -> None:
    with SyncEngine(world.registry, url, small()) as engine:
        ref = engine.start(job(), Job(), on_start=ask(Call("call")))
        engine.wait(ref, lambda node: node.data(Job).log == ["call"], timeout=timedelta(minutes=1))
        engine.update(ref, note("by hand"))
        engine.drain()
        assert engine.read(ref, log) == ["call", "by hand"]
        assert engine.describe(ref.execution).info.start_time <= engine.now()


def test_state_is_there_when_the_engine_is_opened_again(world: World, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with SyncEngine(world.registry, url, small(), run_tasks=False) as engine:
        ref = engine.start(job(), Job(), on_start=ask(Call("call")))
    with SyncEngine(world.registry, url, small()) as engine:
        engine.drain()
        assert engine.read(ref, log) == ["call"]


def test_store_may_be_made_by_a_function(world: World) -> None:
    closed: list[int] = []

    @asynccontextmanager
    async def store() -> AsyncIterator[EngineStore]:
        async with require(connect("memory://"), EngineStore) as opened:
            yield opened
        closed.append(threading.get_ident())

    with SyncEngine(world.registry, store) as engine:
        engine.start(job(), Job())
    assert len(closed) == 1
    assert closed != [threading.get_ident()]


def test_many_threads_may_call_at_once(world: World, url: str) -> None:
    with SyncEngine(world.registry, url, small()) as engine, ThreadPoolExecutor(8) as pool:
        ref = engine.start(job(), Job())
        for _ in pool.map(lambda number: engine.update(ref, note(f"{number}")), range(100)):
            pass
        assert sorted(engine.read(ref, log), key=int) == [f"{number}" for number in range(100)]


def test_errors_come_out_as_they_are(world: World, url: str) -> None:
    with SyncEngine(world.registry, url, small()) as engine:
        with pytest.raises(ExecutionNotFoundError):
            engine.read(Ref(job("nobody")), log)
        with pytest.raises(TimeoutError):
            engine.wait(engine.start(job(), Job()), lambda _: False, timeout=timedelta())


def test_error_of_opening_comes_out_and_leaves_no_thread(world: World) -> None:
    before = threading.active_count()
    engine = SyncEngine(world.registry, "nosuch://store")
    with pytest.raises(UnknownSchemeError), engine:
        pass
    assert engine._thread is not None
    engine._thread.join()
    assert threading.active_count() == before


def test_engine_is_open_only_in_its_block(world: World) -> None:
    engine = SyncEngine(world.registry, "memory://")
    with pytest.raises(RuntimeError, match="not open"):
        engine.start(job(), Job())
    with pytest.raises(RuntimeError, match="not open"):
        engine.now()
    with engine:
        engine.start(job(), Job())
    with pytest.raises(RuntimeError, match="closed"):
        engine.start(job("late"), Job())
    with pytest.raises(RuntimeError, match="once"), engine:
        pass


def test_function_in_the_thread_of_the_engine_is_told_that_it_cannot_wait_for_it(
    world: World, url: str
) -> None:
    with SyncEngine(world.registry, url, small()) as engine:
        ref = engine.start(job(), Job())

        def again(node: Node) -> None:
            engine.update(ref, note("never"))

        with pytest.raises(RuntimeError, match="thread of the engine"):
            engine.update(ref, again)
        assert engine.read(ref, log) == []


def test_listings_are_iterators(world: World, url: str) -> None:
    world.on(Lasting, failing)
    with SyncEngine(world.registry, url, small()) as engine:
        refs = [engine.start(job(f"{number}"), Job()) for number in range(150)]
        engine.update(refs[0], finish())
        engine.update(refs[1], ask(Lasting("a")))
        engine.drain()

        assert len(list(engine.list())) == 150
        assert [info.key.id for info in engine.list(status=Lifecycle.COMPLETED)] == ["0"]
        first = next(iter(engine.list()))
        assert first.key.namespace == "tests"
        (dead,) = engine.dead_letters()
        world.on(Lasting, idle)
        engine.replay(dead)
        engine.drain()
        assert list(engine.dead_letters()) == []


async def failing(env: Environment, ref: Ref, task: Lasting) -> None:
    raise TerminalError("never")


def test_iterator_may_outlive_the_engine(world: World, url: str) -> None:
    with SyncEngine(world.registry, url, small()) as engine:
        for number in range(150):
            engine.start(job(f"{number}"), Job())
        infos = engine.list()
        next(infos)
    with pytest.raises(RuntimeError, match="closed"):
        list(infos)


def test_everything_else_of_an_engine_is_within_reach(world: World, url: str) -> None:
    with SyncEngine(world.registry, url, small()) as engine:
        ref = engine.start(job(), Job())
        engine.call(lambda inner: inner.terminate(ref.execution, "enough"))
        assert [info.key.id for info in engine.iterate(lambda inner: inner.list())] == ["job"]


def test_error_of_the_block_comes_out_and_cancels_what_runs(world: World, url: str) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    world.on(Lasting, hang)
    with pytest.raises(ZeroDivisionError), SyncEngine(world.registry, url, small()) as engine:  # noqa: PT012
        engine.start(job(), Job(), on_start=ask(Lasting("call")))
        assert begun.wait(60)
        raise ZeroDivisionError
    assert cancelled.is_set()


def test_call_that_waits_when_the_engine_closes_is_told(world: World, url: str) -> None:
    waiting = threading.Event()
    errors: list[BaseException] = []

    def until(node: Node) -> bool:
        waiting.set()
        return False

    def wait() -> None:
        try:
            engine.wait(ref, until)
        except RuntimeError as error:
            errors.append(error)

    with SyncEngine(world.registry, url, small()) as engine:
        ref = engine.start(job(), Job())
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(60)
    thread.join(60)
    assert [str(error) for error in errors] == ["the engine is closed"]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_calls_and_executors_run_in_the_context_of_their_callers(world: World, url: str) -> None:
    seen: list[str] = []

    async def look(env: Environment, ref: Ref, task: Lasting) -> None:
        seen.append(variable.get())

    world.on(Lasting, look)
    variable.set("of the block")
    with SyncEngine(world.registry, url, small()) as engine:
        variable.set("of the call")
        ref = engine.start(job(), Job(), on_start=ask(Lasting("call")))
        engine.read(ref, lambda _: seen.append(variable.get()))
        engine.drain()
    assert sorted(seen) == ["of the block", "of the call"]


async def test_calls_that_wait_are_broken_off_when_nobody_may_call_any_more() -> None:
    calls = Calls(lambda: RuntimeError("it is over"))
    begun = asyncio.Event()

    async def wait_for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(asyncio.to_thread(calls.call, wait_for_ever))
    await begun.wait()
    calls.close()
    with pytest.raises(RuntimeError, match="it is over"):
        await waiting


# Executors in threads


@pytest.fixture
def plain() -> World:
    """A world in which a plain function runs the tasks of type `Call`."""
    return World(without=(Call,))


def register(world: World, run: object, timeout: timedelta | None = None) -> None:
    world.registry.register_task(Call, timeout=timeout)
    world.registry.register_executor(Call, in_thread(run, threads=2))  # type: ignore[arg-type]


def test_plain_function_runs_in_a_thread_and_writes(plain: World, url: str) -> None:
    threads: list[int] = []

    def run(env: SyncEnvironment, ref: Ref, task: Call) -> None:
        threads.append(threading.get_ident())
        before = env.read(ref, log)
        assert env.now().tzinfo is not None
        env.update(ref, note(f"{before} {task.name}"))

    register(plain, run)
    with SyncEngine(plain.registry, url, small()) as engine:
        ref = engine.start(job(), Job(), on_start=ask(Call("call")))
        engine.drain()
        assert engine.read(ref, log) == ["[] call"]
        inside = engine.call(lambda _: own_thread())
    assert set(threads).isdisjoint({threading.get_ident(), inside})


async def own_thread() -> int:
    return threading.get_ident()


def test_error_of_a_plain_function_decides_about_its_task(plain: World, url: str) -> None:
    def run(env: SyncEnvironment, ref: Ref, task: Call) -> None:
        raise TerminalError("never")

    register(plain, run)
    with SyncEngine(plain.registry, url, small()) as engine:
        engine.start(job(), Job(), on_start=ask(Call("call")))
        engine.drain()
        (dead,) = engine.dead_letters()
        assert dead.error_type == "TerminalError"


def test_function_whose_time_is_up_can_write_no_more(plain: World, url: str) -> None:
    begun, go, refused = threading.Event(), threading.Event(), threading.Event()
    clock = FakeClock()

    def run(env: SyncEnvironment, ref: Ref, task: Call) -> None:
        if ref.attempt > 1:
            env.update(ref, note("second"))
            return
        begun.set()
        assert go.wait(60)
        try:
            env.update(ref, note("first"))
        except AccessClosedError:
            refused.set()

    register(plain, run, timeout=timedelta(minutes=1))
    with SyncEngine(plain.registry, url, small(clock=clock)) as engine:
        ref = engine.start(job(), Job(), on_start=ask(Call("call")))
        assert begun.wait(60)
        for _ in range(2):
            engine.call(lambda inner: past(clock, inner))
        go.set()
        assert refused.wait(60)
        assert engine.read(ref, log) == ["second"]


async def past(clock: FakeClock, engine: Engine) -> None:
    clock.advance(timedelta(minutes=2))
    await asyncio.sleep(0)
    await engine.drain()
