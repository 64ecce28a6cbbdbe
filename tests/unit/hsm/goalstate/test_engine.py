"""The goal-state engine: what is evaluated when, how often, and what nothing can do to anything else."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import attrs
import pytest

from hsm.goalstate import (
    Action,
    ActionList,
    Engine,
    Run,
    Standing,
)
from hsm.testing import FakeClock
from tests.support.goals import SECOND, Blocked, Light, failing, noting, steady


async def test_engine_without_entities_starts_and_stops_as_often_as_one_likes(clock: FakeClock) -> None:
    engine = Engine(steady(clock))
    for _ in range(2):
        await engine.stop()
        await engine.start()
        await engine.start()
        await engine.drain()
        await engine.stop(drain=False)
        await engine.stop()
    assert engine.total == 0


async def test_entities_scheduled_before_the_start_run_once_each_and_stay_known(clock: FakeClock) -> None:
    lights = [Light(str(number)) for number in range(10)]
    engine = Engine(steady(clock))
    for light in lights:
        engine.enqueue(light, clock.now())
    assert [light.log for light in lights] == [[]] * 10
    async with engine:
        await engine.drain()
        assert [light.log for light in lights] == [["switch"]] * 10
        assert [light.done for light in lights] == [1] * 10
        assert not any(engine.is_scheduled(light.id) for light in lights)
        await clock.skip(timedelta(days=1))
        assert engine.total == 10
        for light in lights:
            engine.delete(light.id)
            engine.delete(light.id)
        assert engine.total == 0
    assert [light.log for light in lights] == [["switch"]] * 10


async def test_three_failures_then_success_make_four_runs_and_no_delay_is_left(clock: FakeClock) -> None:
    lights = [Light(str(number), todo=[failing("try", 3)]) for number in range(10)]
    async with Engine(steady(clock)) as engine:
        for light in lights:
            engine.enqueue(light)
        await clock.skip(timedelta(seconds=69))
        assert {engine.failures(light.id) for light in lights} == {3}
        await clock.skip(timedelta(days=1))
        assert [light.log for light in lights] == [["try"] * 4] * 10
        assert {engine.failures(light.id) for light in lights} == {0}


async def test_list_that_fails_begins_anew_with_the_first_action(clock: FakeClock) -> None:
    light = Light(todo=[noting("first"), failing("second", 3), noting("third")])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(timedelta(days=1))
    assert light.log == ["first", "second"] * 4 + ["third"]
    assert light.done == 4


async def test_empty_list_runs_nothing_and_is_not_scheduled_again(clock: FakeClock) -> None:
    light = Light(state="on")
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await engine.drain()
        assert not engine.is_scheduled(light.id)
        assert light.log == []
        assert light.done == 1


async def test_earliest_deadline_wins_and_later_ones_are_ignored(clock: FakeClock) -> None:
    lights = [Light(str(number)) for number in range(10)]
    now = clock.now()
    async with Engine(steady(clock)) as engine:
        for light in lights:
            engine.enqueue(light, now + 30 * SECOND)
            engine.enqueue(light, now + 60 * SECOND)
            assert engine.deadline(light.id) == now + 30 * SECOND
            engine.enqueue(light, now)
        await engine.drain()
        assert [light.log for light in lights] == [["switch"]] * 10
        await clock.skip(timedelta(hours=1))
        assert [light.done for light in lights] == [1] * 10


async def test_later_deadline_counts_if_it_is_to_replace_the_earlier(clock: FakeClock) -> None:
    light = Light()
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light, clock.now() + 30 * SECOND)
        engine.enqueue(light, clock.now() + 60 * SECOND, replace=True)
        await clock.skip(59 * SECOND)
        assert light.log == []
        await clock.skip(SECOND)
        assert light.log == ["switch"]


async def test_deadlines_order_runs_and_ties_run_in_order_of_arrival(clock: FakeClock) -> None:
    order: list[str] = []

    async def note(light: Light, run: Run) -> None:
        order.append(run.entity_id)

    now = clock.now()
    chance = random.Random(7)
    wanted: list[tuple[int, int]] = []
    engine = Engine(steady(clock, workers=1))
    for number in range(200):
        second = chance.randrange(5)
        wanted.append((second, number))
        engine.enqueue(Light(str(number), todo=[Action("note", note)]), now + second * SECOND)
    async with engine:
        clock.advance(10 * SECOND)
        await engine.drain()
    assert order == [str(number) for _, number in sorted(wanted)]


async def test_unscheduling_is_explicit(clock: FakeClock) -> None:
    light = Light()
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light, clock.now() + SECOND)
        assert engine.unschedule(light.id)
        assert not engine.unschedule(light.id)
        assert not engine.unschedule("nobody")
        assert not engine.is_scheduled(light.id)
        await clock.skip(timedelta(hours=1))
        assert light.log == []
        assert engine.total == 1
        # The first time there is is a deadline like others.
        engine.enqueue(light, datetime.fromisoformat("1970-01-01T00:00:00+00:00"))
        await engine.drain()
        assert light.log == ["switch"]


async def test_deadline_without_a_time_zone_is_refused(clock: FakeClock) -> None:
    with pytest.raises(TypeError, match="no time zone"):
        Engine(steady(clock)).enqueue(Light(), datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point


async def test_enqueueing_cuts_a_pause_short(clock: FakeClock) -> None:
    light = Light(todo=[failing("try", 1)])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await engine.drain()
        engine.enqueue(light, clock.now() + 5 * SECOND)
        await clock.skip(5 * SECOND)
        assert light.log == ["try", "try"]


async def test_reenqueue_during_a_run_gives_one_more_run_and_takes_no_worker(clock: FakeClock) -> None:
    blocked = Blocked()
    light, other = Light(todo=[blocked.action()]), Light("other")
    async with Engine(steady(clock, workers=2)) as engine:
        engine.enqueue(light)
        await clock.skip(SECOND)
        for _ in range(5):
            engine.enqueue(light)
        engine.enqueue(other)
        await clock.skip(SECOND)
        assert other.log == ["switch"]
        assert engine.in_flight == 1
        assert engine.is_running(light.id)
        assert engine.is_scheduled(light.id)
        blocked.open.set()
        await engine.drain()
        await clock.skip(timedelta(hours=1))
    assert blocked.begun == 2


async def test_wish_of_a_run_for_another_can_be_taken_back(clock: FakeClock) -> None:
    blocked = Blocked()
    light = Light(todo=[blocked.action()])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(SECOND)
        engine.enqueue(light)
        assert engine.unschedule(light.id)
        blocked.open.set()
        await engine.drain()
    assert blocked.begun == 1


async def test_runs_may_ask_for_another_and_skip_what_is_left(clock: FakeClock) -> None:
    async def wait(light: Light, run: Run) -> None:
        light.log.append(f"{run.attempt} at {run.now() - start}")
        run.again(20 * SECOND)
        run.again(10 * SECOND)
        run.skip_rest()

    start = clock.now()
    light = Light(todo=[Action("wait", wait), noting("never")])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(15 * SECOND)
    assert light.log == ["1 at 0:00:00", "1 at 0:00:10"]


async def test_runs_that_follow_one_another_at_once_hold_one_place_and_give_it_back(clock: FakeClock) -> None:
    async def again(light: Light, run: Run) -> None:
        light.log.append("again")
        if len(light.log) < 5:
            run.again()

    blocked = Blocked()
    async with Engine(steady(clock, workers=2)) as engine:
        engine.enqueue(Light(todo=[Action("again", again)]))
        await engine.drain()
        assert engine.in_flight == 0
        for name in ("a", "b"):
            engine.enqueue(Light(name, todo=[blocked.action()]))
        await clock.skip(SECOND)
        assert (blocked.begun, engine.in_flight) == (2, 2)
        blocked.open.set()


async def test_later_object_of_the_same_id_takes_the_place_of_the_earlier(clock: FakeClock) -> None:
    first, second = Light(), Light()
    async with Engine(steady(clock)) as engine:
        engine.enqueue(first, clock.now() + SECOND)
        engine.enqueue(second, clock.now() + SECOND)
        await clock.skip(SECOND)
        assert engine.total == 1
    assert (first.log, second.log) == ([], ["switch"])


async def test_deleting_a_queued_entity_lets_nothing_of_it_run(clock: FakeClock) -> None:
    light = Light()
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light, clock.now() + SECOND)
        engine.delete(light.id)
        assert engine.total == engine.queue_length == 0
        await clock.skip(timedelta(hours=1))
    assert light.log == []


async def test_deleting_a_running_entity_waits_for_nothing_and_nothing_follows(clock: FakeClock) -> None:
    blocked = Blocked()
    light = Light(todo=[blocked.action(), failing("then", 1)])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(SECOND)
        engine.enqueue(light)
        engine.delete(light.id)
        assert engine.total == 0
        assert not engine.is_scheduled(light.id)
        blocked.open.set()
        await clock.skip(timedelta(hours=1))
        assert engine.total == 0
    assert (blocked.begun, light.log) == (1, ["then"])


async def test_entity_added_anew_does_not_run_early_for_what_was_deleted(clock: FakeClock) -> None:
    old, new = Light(), Light()
    async with Engine(steady(clock)) as engine:
        engine.enqueue(old, clock.now() + SECOND)
        engine.delete(old.id)
        engine.enqueue(new, clock.now() + timedelta(hours=10))
        await clock.skip(timedelta(hours=9))
        assert (old.log, new.log) == ([], [])
        assert engine.is_scheduled(new.id)
        await clock.skip(timedelta(hours=1))
        assert (old.log, new.log) == ([], ["switch"])


async def test_entity_added_anew_while_the_old_one_runs_waits_for_its_end(clock: FakeClock) -> None:
    blocked = Blocked()
    old, new = Light(todo=[blocked.action(), failing("late", 1)]), Light()
    async with Engine(steady(clock)) as engine:
        engine.enqueue(old)
        await clock.skip(SECOND)
        engine.delete(old.id)
        engine.enqueue(new)
        assert engine.total == 1
        await clock.skip(SECOND)
        assert new.log == []
        blocked.open.set()
        await engine.drain()
        assert new.log == ["switch"]


async def test_stop_with_drain_waits_for_what_runs_and_keeps_what_is_scheduled(clock: FakeClock) -> None:
    blocked = Blocked()
    running, waiting = Light("running", todo=[blocked.action()]), Light("waiting")
    engine = Engine(steady(clock, workers=1))
    engine.enqueue(running)
    engine.enqueue(waiting)
    await engine.start()
    await clock.skip(SECOND)
    stopping = asyncio.create_task(engine.stop())
    await clock.skip(SECOND)
    assert not stopping.done()
    blocked.open.set()
    await stopping
    assert (blocked.cancelled, running.done, waiting.log) == (0, 1, [])
    assert engine.is_scheduled("waiting")
    engine.enqueue(Light("later"))
    async with engine:
        await engine.drain()
        assert (running.done, waiting.log) == (1, ["switch"])
        assert not engine.is_scheduled("later")


async def test_stop_at_once_cancels_and_runs_again_after_the_next_start(clock: FakeClock) -> None:
    blocked = Blocked()
    lights = [Light(str(number), todo=[blocked.action()]) for number in range(5)]
    engine = Engine(steady(clock, workers=3))
    for light in lights:
        engine.enqueue(light)
    before = len(asyncio.all_tasks())
    for count in (3, 6, 9):
        await engine.start()
        await clock.skip(SECOND)
        assert blocked.begun == count
        await engine.stop(drain=False)
        assert blocked.cancelled == count
        assert engine.in_flight == 0
        assert len(asyncio.all_tasks()) == before
        assert all(engine.is_scheduled(light.id) for light in lights)
        assert {engine.failures(light.id) for light in lights} == {0}
    blocked.open.set()
    async with engine:
        await engine.drain()
        assert not any(engine.is_scheduled(light.id) for light in lights)
    assert blocked.begun == 9 + 5
    assert blocked.cancelled == 9


async def test_deadline_may_be_the_last_there_is(clock: FakeClock) -> None:
    async with Engine(steady(clock)) as engine:
        engine.enqueue(Light(), datetime.max.replace(tzinfo=UTC))
        await clock.skip(timedelta(days=1))
        deadline = engine.deadline("light")
        assert deadline is not None
        assert deadline.year == 2262


async def test_state_and_goal_may_be_read_asynchronously_and_belong_together(clock: FakeClock) -> None:
    @attrs.define
    class Remote:
        id: str = "remote"
        seen: list[tuple[int, int]] = attrs.field(factory=list)

        async def read(self) -> Standing[int, int]:
            await asyncio.sleep(0)
            return Standing(1, 2)

        def action_list(self, state: int, goal: int, /) -> ActionList[Remote]:
            self.seen.append((state, goal))
            return ActionList()

    remote = Remote()
    async with Engine(steady(clock)) as engine:
        engine.enqueue(remote)
        await engine.drain()
    assert remote.seen == [(1, 2)]


async def test_waiting_for_an_engine_that_is_not_started_is_refused(clock: FakeClock) -> None:
    engine = Engine(steady(clock))
    engine.enqueue(Light())
    with pytest.raises(RuntimeError, match="not started"):
        await engine.drain()
