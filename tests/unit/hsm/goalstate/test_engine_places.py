"""The places of an engine: who gets one, for how long, and who loses it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from datetime import timedelta

import pytest

from hsm.goalstate import (
    Action,
    Engine,
    Options,
    Priority,
    Run,
)
from hsm.goalstate._dispatcher import Dispatcher
from hsm.goalstate._entry import Entry
from hsm.testing import FakeClock
from tests.support.goals import SECOND, Blocked, Light, noting, steady


async def test_action_that_hangs_is_cancelled_in_time_and_harms_no_other(clock: FakeClock) -> None:
    blocked = Blocked()
    hung = Light("hung", todo=[blocked.action(5 * SECOND), noting("never")])
    async with Engine(steady(clock, workers=1)) as engine:
        engine.enqueue(hung)
        engine.enqueue(Light("good"), clock.now())
        await clock.skip(4 * SECOND)
        assert engine.is_running("hung")
        await clock.skip(SECOND)
        assert not engine.is_running("hung")
        assert engine.failures("hung") == 1
        assert not engine.is_scheduled("good")
    assert (blocked.cancelled, hung.done, hung.log) == (1, 1, [])


async def test_list_is_cancelled_when_its_time_is_up(clock: FakeClock) -> None:
    blocked = Blocked()

    async def pause(light: Light, run: Run) -> None:
        clock.advance(2 * SECOND)

    light = Light(todo=[Action("pause", pause), blocked.action(timedelta(hours=1))], timeout=5 * SECOND)
    async with Engine(steady(clock, maximum_attempts=1)) as engine:
        engine.enqueue(light)
        await clock.skip(4 * SECOND)
        assert blocked.cancelled == 0
        await clock.skip(SECOND)
        assert blocked.cancelled == 1
        (dead,) = engine.dead()
        assert "blocked took longer than 0:00:03" in dead.error


async def test_action_that_does_not_heed_its_cancellation_loses_its_place(clock: FakeClock) -> None:
    letting_go = asyncio.Event()

    async def stubborn(light: Light, run: Run) -> None:
        while not letting_go.is_set():
            try:
                await letting_go.wait()
            except asyncio.CancelledError:
                light.log.append("cancelled")

    light = Light(todo=[Action("stubborn", stubborn, SECOND)])
    async with Engine(steady(clock, workers=1)) as engine:
        engine.enqueue(light)
        await clock.skip(SECOND)
        good = Light("good")
        engine.enqueue(good)
        engine.enqueue(light)
        await clock.skip(4 * SECOND)
        assert good.log == []
        await clock.skip(SECOND)
        assert good.log == ["switch"]
        await clock.skip(timedelta(hours=1))
        assert light.log == ["cancelled"]
        assert engine.is_running(light.id)
        light.todo = []
        letting_go.set()
        await engine.drain()
        assert not engine.is_running(light.id)


async def test_run_that_outlasts_a_stop_takes_no_place_after_the_next_start(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsm.engine._stopping.PATIENCE_SECONDS", 0.01)
    letting_go = asyncio.Event()

    async def stubborn(light: Light, run: Run) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await letting_go.wait()
        await letting_go.wait()

    light, good = Light(todo=[Action("stubborn", stubborn)]), Light("good")
    engine = Engine(steady(clock, workers=1))
    await engine.start()
    engine.enqueue(light)
    await clock.skip(SECOND)
    await engine.stop(drain=False)
    assert engine.is_running(light.id)
    assert engine.in_flight == 0
    async with engine:
        engine.enqueue(good)
        await clock.skip(SECOND)
        assert good.log == ["switch"]
        letting_go.set()
        await engine.drain()


async def test_nothing_is_tried_over_and_over_while_it_is_not_allowed(clock: FakeClock) -> None:
    allowed, asked, ran = False, 0, list[str]()

    def allow() -> bool:
        nonlocal asked
        asked += 1
        return allowed

    async def perform(entry: Entry) -> None:
        ran.append(entry.id)

    dispatcher = Dispatcher(steady(clock), perform, allowed=allow)
    dispatcher.start()
    dispatcher.schedule(Entry("due"), clock.time_ns())
    await clock.skip(SECOND)
    assert asked < 5
    allowed = True
    dispatcher.resume()
    await dispatcher.drain()
    assert ran == ["due"]
    await dispatcher.stop(SECOND)


async def test_plain_function_runs_in_a_thread_and_may_block(clock: FakeClock) -> None:
    threads: list[int] = []
    together = threading.Barrier(2)

    def block(light: Light, run: Run) -> None:
        together.wait(30)
        threads.append(threading.get_ident())
        engine.enqueue(Light("other"))

    async with Engine(steady(clock)) as engine:
        for name in ("a", "b"):
            engine.enqueue(Light(name, todo=[Action("block", block)]))
        await engine.drain()
        assert engine.total == 3
    assert len(set(threads)) == 2
    assert threading.get_ident() not in threads


async def test_thread_that_outlasts_its_time_frees_its_place_but_not_its_entity(clock: FakeClock) -> None:
    begun, letting_go = threading.Event(), threading.Event()
    runs: list[int] = []

    def hang(light: Light, run: Run) -> None:
        runs.append(run.attempt)
        begun.set()
        letting_go.wait(60)

    light, good = Light(todo=[Action("hang", hang, SECOND)]), Light("good")
    async with Engine(steady(clock, workers=1)) as engine:
        engine.enqueue(light)
        assert await asyncio.to_thread(begun.wait, 60)
        engine.enqueue(light)
        await clock.skip(SECOND)
        engine.enqueue(good)
        await clock.skip(SECOND)
        assert good.log == ["switch"]
        await clock.skip(timedelta(hours=1))
        assert runs == [1]
        assert engine.is_running(light.id)
        assert engine.in_flight == 0
        light.todo = []
        letting_go.set()
        await engine.drain()
    assert light.done == 2


async def test_call_that_found_no_thread_in_time_is_not_made_later(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsm.goalstate._evaluation._SPARE_THREADS", 0)
    begun, letting_go, calls = threading.Event(), threading.Event(), list[str]()

    def hang(light: Light, run: Run) -> None:
        calls.append(light.id)
        begun.set()
        letting_go.wait(60)

    async with Engine(steady(clock, workers=1, maximum_attempts=1)) as engine:
        engine.enqueue(Light("first", todo=[Action("hang", hang, SECOND)]))
        assert await asyncio.to_thread(begun.wait, 60)
        await clock.skip(SECOND)
        engine.enqueue(Light("second", todo=[Action("hang", hang, SECOND)]))
        await clock.skip(2 * SECOND)
        assert not engine.is_running("second")
        letting_go.set()
        await engine.drain()
        assert {dead.id for dead in engine.dead()} == {"first", "second"}
    assert calls == ["first"]


async def test_time_limits_hold_after_another_start(clock: FakeClock) -> None:
    blocked = Blocked()
    light = Light(todo=[noting("well")])
    engine = Engine(steady(clock, run_timeout=10 * SECOND))
    async with engine:
        engine.enqueue(light)
        await engine.drain()
    clock.advance(timedelta(hours=1))
    light.todo = [blocked.action()]
    async with engine:
        engine.enqueue(light)
        await clock.skip(10 * SECOND)
        assert (blocked.cancelled, engine.failures(light.id)) == (1, 1)


async def test_no_more_entities_run_at_once_than_there_are_workers(clock: FakeClock) -> None:
    blocked = Blocked()
    async with Engine(steady(clock, workers=4)) as engine:
        for number in range(20):
            engine.enqueue(Light(str(number), todo=[blocked.action()]))
        await clock.skip(SECOND)
        assert (blocked.begun, engine.in_flight, engine.queue_length) == (4, 4, 16)
        blocked.open.set()
        await engine.drain()
        assert blocked.begun == 20


async def test_a_hundred_threads_enqueue_and_nothing_is_lost() -> None:
    lights = [Light(str(number)) for number in range(100)]
    async with Engine(Options()) as engine:
        await asyncio.gather(*(asyncio.to_thread(engine.enqueue, light) for light in lights))
        await engine.drain()
    assert [light.log for light in lights] == [["switch"]] * 100


async def test_new_work_runs_before_what_was_recovered_which_still_gets_on(clock: FakeClock) -> None:
    order: list[str] = []

    async def note(light: Light, run: Run) -> None:
        order.append(run.entity_id[:3])

    todo = [Action("note", note)]
    engine = Engine(steady(clock, workers=1))
    engine.recover([Light(f"old {number}", todo=todo) for number in range(10)], spread=timedelta())
    clock.advance(SECOND)
    for number in range(16):
        engine.enqueue(Light(f"new {number}", todo=todo))
    async with engine:
        await engine.drain()
    assert order == (["new"] * 7 + ["old"]) * 2 + ["new"] * 2 + ["old"] * 8


async def test_enqueueing_lifts_a_recovered_entity_out_of_the_low_priority(clock: FakeClock) -> None:
    order: list[str] = []

    async def note(light: Light, run: Run) -> None:
        order.append(run.entity_id)

    todo = [Action("note", note)]
    engine = Engine(steady(clock, workers=1))
    for name in ("a", "b", "c"):
        engine.enqueue(Light(name, todo=todo), priority=Priority.LOW)
    engine.enqueue(Light("c", todo=todo), clock.now() + SECOND)
    engine.enqueue(Light("d", todo=todo))
    async with engine:
        await engine.drain()
    assert order == ["c", "d", "a", "b"]


async def test_entity_that_is_recovered_though_it_waits_keeps_its_priority(clock: FakeClock) -> None:
    order: list[str] = []

    async def note(light: Light, run: Run) -> None:
        order.append(light.id)
        if light.id == "new" and order.count("new") == 1:
            raise OSError("no power")

    engine = Engine(steady(clock, workers=1))
    new = Light("new", todo=[Action("note", note)])
    engine.enqueue(new)
    engine.enqueue(new, priority=Priority.LOW)
    async with engine:
        await engine.drain()
    # Both are due before anything runs again.
    engine.enqueue(Light("old", todo=[Action("note", note)]), clock.now() + SECOND, priority=Priority.LOW)
    clock.advance(20 * SECOND)
    async with engine:
        await engine.drain()
    assert order == ["new", "new", "old"]


async def test_recovered_entities_are_spread(clock: FakeClock) -> None:
    engine = Engine(steady(clock, random=random.Random(1)))
    engine.recover([Light(str(number)) for number in range(100)], spread=100 * SECOND)
    due = [engine.deadline(str(number)) for number in range(100)]
    assert len(set(due)) == 100
    assert all(moment is not None and timedelta() <= moment - clock.now() <= 100 * SECOND for moment in due)
