"""The goal-state engine: what is evaluated when, how often, and what nothing can do to anything else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import attrs
import pytest

from hsm.errors import RateLimitError, StaleReferenceError, TerminalError
from hsm.goalstate import (
    Action,
    ActionList,
    Engine,
    EntityNotFoundError,
    Growth,
    Options,
    Priority,
    Run,
    Standing,
)
from hsm.goalstate._dispatcher import Dispatcher
from hsm.goalstate._entry import Entry
from hsm.testing import FakeClock
from tests.support.goals import SECOND, Blocked, Light, failing, noting, steady, timed


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def fail() -> None:
    raise OSError("no power")


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


@pytest.mark.parametrize(
    ("growth", "seconds"),
    [(Growth.EXPONENTIAL, [0, 4, 12, 28, 46]), (Growth.ADDITIVE, [0, 4, 12, 24, 40, 58])],
)
async def test_pauses_grow_up_to_the_longest(clock: FakeClock, growth: Growth, seconds: list[float]) -> None:
    times: list[float] = []
    options = steady(clock, growth=growth, failure_retry_delay=4 * SECOND, maximum_retry_delay=18 * SECOND)
    async with Engine(options) as engine:
        engine.enqueue(Light(todo=[noting("well"), timed(clock, times, fail)]))
        await clock.skip(60 * SECOND)
    assert times == seconds


async def test_chance_shortens_pauses_by_no_more_than_the_jitter(clock: FakeClock) -> None:
    times: list[float] = []
    options = steady(clock, jitter=0.5, maximum_retry_delay=10 * SECOND, random=random.Random(3))
    async with Engine(options) as engine:
        engine.enqueue(Light(todo=[timed(clock, times, fail)]))
        await clock.skip(timedelta(minutes=10))
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(5 <= pause <= 10.001 for pause in pauses)
    assert max(pauses) - min(pauses) > 1


async def test_only_a_whole_list_that_succeeds_resets_the_pause(clock: FakeClock) -> None:
    times: list[float] = []
    left = 3

    async def fail_three_times() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError("no power")

    light = Light(todo=[noting("well"), timed(clock, times, fail_three_times)])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(70 * SECOND)
        left = 1
        engine.enqueue(light)
        await clock.skip(10 * SECOND)
    assert times == [0, 10, 30, 70, 70, 80]


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


@attrs.define
class Odd:
    """An entity that fails before there is an action."""

    id: str
    error: BaseException

    def read(self) -> Standing[str, str]:
        raise self.error

    def action_list(self, state: str, goal: str, /) -> ActionList[Odd]:
        return ActionList()


class Unheard(BaseException):
    """No `Exception`."""


async def cancel_itself() -> None:
    raise asyncio.CancelledError


async def raise_unheard() -> None:
    raise Unheard


@pytest.mark.parametrize("misbehave", [fail, cancel_itself, raise_unheard])
async def test_whatever_an_action_raises_is_a_failure_of_its_entity_alone(
    clock: FakeClock, misbehave: object
) -> None:
    times: list[float] = []
    light = Light(todo=[timed(clock, times, misbehave)])  # type: ignore[arg-type]  # one of the three above
    async with Engine(steady(clock, workers=1)) as engine:
        engine.enqueue(Odd("odd", ValueError("unreadable")))
        engine.enqueue(light)
        engine.enqueue(Light("good"), clock.now() + SECOND)
        await clock.skip(10 * SECOND)
        assert engine.failures("good") == 0
        assert not engine.is_scheduled("good")
        assert engine.failures("odd") == 2
        assert engine.failures(light.id) == 2
    assert times == [0, 10]
    assert light.done == 2


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


async def test_entity_whose_error_cannot_say_what_it_is_is_given_up_all_the_same(clock: FakeClock) -> None:
    class SpeechlessError(TerminalError):
        def __str__(self) -> str:
            raise ValueError("no words")

    async with Engine(steady(clock)) as engine:
        engine.enqueue(Light(todo=[failing("try", 1, SpeechlessError)]))
        await engine.drain()
        (dead,) = engine.dead()
        assert dead.error == "SpeechlessError"


async def test_deadline_may_be_the_last_there_is(clock: FakeClock) -> None:
    async with Engine(steady(clock)) as engine:
        engine.enqueue(Light(), datetime.max.replace(tzinfo=UTC))
        await clock.skip(timedelta(days=1))
        deadline = engine.deadline("light")
        assert deadline is not None
        assert deadline.year == 2262


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


async def test_terminal_error_gives_the_entity_up_until_it_is_enqueued_again(clock: FakeClock) -> None:
    light = Light(todo=[failing("try", 1, lambda: TerminalError("no such lamp"))])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(timedelta(days=1))
        (dead,) = engine.dead()
        assert (dead.id, dead.error, dead.failures) == ("light", "TerminalError: no such lamp", 1)
        assert not engine.is_scheduled(light.id)
        assert light.log == ["try"]
        engine.enqueue(light)
        assert engine.dead() == []
        await engine.drain()
        assert light.log == ["try", "try"]
        assert engine.failures(light.id) == 0


async def test_entity_enqueued_during_the_run_that_would_have_killed_it_lives(clock: FakeClock) -> None:
    async def die(light: Light, run: Run) -> None:
        light.todo = None
        engine.enqueue(light)
        raise TerminalError("no such lamp")

    light = Light(todo=[Action("die", die)])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await engine.drain()
        assert engine.dead() == []
        assert light.log == ["switch"]


async def test_too_many_failures_give_the_entity_up(clock: FakeClock) -> None:
    light = Light(todo=[failing("try", 9)])
    async with Engine(steady(clock, maximum_attempts=3)) as engine:
        engine.enqueue(light)
        await clock.skip(timedelta(days=1))
        assert [dead.failures for dead in engine.dead()] == [3]
        engine.delete(light.id)
        assert engine.dead() == []
    assert light.log == ["try"] * 3


async def test_error_says_when_to_try_again_and_does_not_count(clock: FakeClock) -> None:
    times: list[float] = []

    async def busy() -> None:
        raise RateLimitError("too many", retry_after=3 * SECOND)

    async with Engine(steady(clock, maximum_attempts=2)) as engine:
        engine.enqueue(Light(todo=[timed(clock, times, busy)]))
        await clock.skip(10 * SECOND)
        assert engine.dead() == []
        assert engine.failures("light") == 0
    assert times == [0, 3, 6, 9]


async def test_error_that_says_there_is_nothing_left_to_do_is_no_failure(clock: FakeClock) -> None:
    light = Light(todo=[failing("try", 9, lambda: StaleReferenceError("moved on"))])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(timedelta(days=1))
        assert engine.failures(light.id) == 0
    assert light.log == ["try"]


async def test_on_done_that_fails_changes_nothing(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    @attrs.define
    class Bad:
        id: str = "bad"

        def read(self) -> Standing[str, str]:
            return Standing("a", "b")

        def action_list(self, state: str, goal: str, /) -> ActionList[Bad]:
            return ActionList(on_done=partial(setattr, self, "absent", None))

    async with Engine(steady(clock)) as engine:
        engine.enqueue(Bad())
        await clock.skip(timedelta(days=1))
        assert engine.failures("bad") == 0
    assert "`on_done` of entity bad has failed" in caplog.text


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


async def test_recovered_entities_are_spread(clock: FakeClock) -> None:
    engine = Engine(steady(clock, random=random.Random(1)))
    engine.recover([Light(str(number)) for number in range(100)], spread=100 * SECOND)
    due = [engine.deadline(str(number)) for number in range(100)]
    assert len(set(due)) == 100
    assert all(moment is not None and timedelta() <= moment - clock.now() <= 100 * SECOND for moment in due)


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


async def test_waiting_for_an_engine_that_is_not_started_is_refused(clock: FakeClock) -> None:
    engine = Engine(steady(clock))
    engine.enqueue(Light())
    with pytest.raises(RuntimeError, match="not started"):
        await engine.drain()


async def test_entity_that_is_gone_is_forgotten(clock: FakeClock) -> None:
    light = Light(todo=[failing("look", 1, lambda: EntityNotFoundError("no such light"))])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(timedelta(days=1))
        assert (engine.total, engine.queue_length, light.log) == (0, 0, ["look"])


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
