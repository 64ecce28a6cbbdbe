"""Rates: tasks of a queue start no more often than they may, and lose nothing by waiting."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from hsm.engine import Rate
from hsm.engine._gates import Gate
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database
from tests.support.jobs import Lasting, World, small, started

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


def seconds(world: World, clock: FakeClock) -> list[float]:
    """How long ago the tasks have started."""
    return [(clock.now() - run.time).total_seconds() for run in world.runs]


async def test_tasks_start_as_often_as_they_may(world: World, database: Database, clock: FakeClock) -> None:
    options = small(rate=Rate(2))
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        for number in range(5):
            await started(engine, str(number), Lasting("x"))
        await engine.skip(10 * SECOND)
        assert seconds(world, clock) == [10, 9.5, 9, 8.5, 8]
        assert {run.attempt for run in world.runs} == {1}


async def test_some_may_start_at_once_after_a_pause(
    world: World, database: Database, clock: FakeClock
) -> None:
    options = small(rate=Rate(1, burst=3))
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        for number in range(5):
            await started(engine, str(number), Lasting("x"))
        await engine.skip(10 * SECOND)
        assert seconds(world, clock) == [10, 10, 10, 9, 8]


async def test_limit_holds_for_tasks_that_come_one_by_one(
    world: World, database: Database, clock: FakeClock
) -> None:
    """A queue that is empty in between is not a new one."""
    options = small(rate=Rate(0.1), poll_interval=SECOND)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        for number in range(4):
            await started(engine, str(number), Lasting("x"))
            await engine.skip(2 * SECOND)
        assert seconds(world, clock) == [8]
        await engine.skip(MINUTE)
        assert seconds(world, clock) == [68, 58, 48, 38]
        assert engine.queues() == []


async def test_queues_have_their_own_limits_which_may_change(
    world: World, database: Database, clock: FakeClock
) -> None:
    rates = {"slow": Rate(1 / 3600), "fast": Rate(math.inf)}
    options = small(
        rate=Rate(1 / 60),
        rate_of=lambda namespace, group, destination: rates.get(destination),
        poll_interval=10 * SECOND,
    )
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        for number in range(3):
            for destination in ("slow", "fast", "other"):
                await started(
                    engine, f"{destination}-{number}", Lasting(destination, destination=destination)
                )
        await engine.skip(MINUTE)
        counts = {name: world.names().count(name) for name in ("slow", "fast", "other")}
        assert counts == {"slow": 1, "fast": 3, "other": 2}
        rates["slow"] = Rate(1)
        await engine.skip(MINUTE)
        assert world.names().count("slow") == 3


@pytest.mark.parametrize("wrong", [{"per_second": 0}, {"per_second": 1, "burst": 0}])
def test_limits_that_let_nothing_through_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=">"):
        Rate(**wrong)  # type: ignore[arg-type]  # a float where an int is asked for is no concern here


@given(
    st.lists(st.integers(0, 3_000_000_000), max_size=60),
    st.integers(1, 5),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_no_span_of_time_sees_more_starts_than_the_limit_says(
    pauses: list[int], burst: int, per_second: float
) -> None:
    gate = Gate(Rate(per_second, burst))
    now, starts = 0, list[int]()
    for pause in pauses:
        now += pause
        opens_at = gate.admit("x", now)
        if opens_at is None:
            starts.append(now)
        else:
            assert opens_at > now
    for first, begin in enumerate(starts):
        for count, end in enumerate(starts[first:], start=1):
            assert count <= burst + (end - begin) * per_second / 1e9 + 1e-6


def test_clock_that_is_put_back_closes_a_queue_no_longer_than_its_rate() -> None:
    gate = Gate(Rate(1, burst=2))
    hour = 3600 * 10**9
    assert [gate.admit("x", hour) for _ in range(3)] == [None, None, hour + 10**9]
    assert gate.admit("x", 0) == 10**9
    assert gate.admit("x", 10**9) is None
