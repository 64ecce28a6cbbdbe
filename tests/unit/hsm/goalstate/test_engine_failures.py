"""What an error means for an entity: a pause, its death, or nothing."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import timedelta
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
    Run,
    Standing,
)
from hsm.testing import FakeClock
from tests.support.goals import SECOND, Light, failing, noting, steady, timed


async def fail() -> None:
    raise OSError("no power")


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


async def test_entity_whose_error_cannot_say_what_it_is_is_given_up_all_the_same(clock: FakeClock) -> None:
    class SpeechlessError(TerminalError):
        def __str__(self) -> str:
            raise ValueError("no words")

    async with Engine(steady(clock)) as engine:
        engine.enqueue(Light(todo=[failing("try", 1, SpeechlessError)]))
        await engine.drain()
        (dead,) = engine.dead()
        assert dead.error == "SpeechlessError"


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


async def test_entity_that_is_gone_is_forgotten(clock: FakeClock) -> None:
    light = Light(todo=[failing("look", 1, lambda: EntityNotFoundError("no such light"))])
    async with Engine(steady(clock)) as engine:
        engine.enqueue(light)
        await clock.skip(timedelta(days=1))
        assert (engine.total, engine.queue_length, light.log) == (0, 0, ["look"])
