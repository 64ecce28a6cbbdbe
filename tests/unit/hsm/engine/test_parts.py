"""Small parts: keys of rows, ids, deadlines, backoff, and the clocks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hsm import Key
from hsm.engine import Backoff, DeadlineQueue, EngineOptions, SystemClock
from hsm.engine._table import row_path, row_segments
from hsm.engine.clock import from_nanos, time_limit, to_nanos
from hsm.engine.ids import IdSource
from hsm.testing import FakeClock
from persistence.executions import (
    current_run_key,
    escape,
    execution_key,
    group_prefix,
    node_prefix,
    parse_execution_key,
    prefix_end,
    shard_of,
    timer_key,
    unescape,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8) | st.text(
    "/%25F:0!~", max_size=6
)
KEYS = st.builds(Key, st.integers(-(2**31), 2**31 - 1), TEXT)
PATHS = st.lists(KEYS, max_size=4).map(tuple)


@given(TEXT)
def test_segments_hold_any_text(text: str) -> None:
    assert unescape(escape(text)) == text
    assert "/" not in escape(text)


@given(TEXT, TEXT, TEXT)
def test_keys_of_executions_can_be_read_back(namespace: str, id_: str, run_id: str) -> None:
    assert parse_execution_key(execution_key(namespace, id_, run_id)) == (namespace, id_, run_id)


@given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT))
def test_keys_of_different_executions_differ(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    functions: list[Callable[[str, str, str], str]] = [execution_key, node_prefix]
    for function in functions:
        assert (function(*one) == function(*other)) == (one == other)
    assert (current_run_key(*one[:2]) == current_run_key(*other[:2])) == (one[:2] == other[:2])
    assert (group_prefix(*one) == group_prefix(*other)) == (one == other)


@given(PATHS)
def test_paths_can_be_read_back(path: tuple[Key, ...]) -> None:
    assert row_path(row_segments(path)) == path


@given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT), PATHS)
def test_rows_of_a_tree_are_those_under_its_prefix(
    execution: tuple[str, str, str], other: tuple[str, str, str], path: tuple[Key, ...]
) -> None:
    prefix = node_prefix(*other)
    key = node_prefix(*execution) + row_segments(path)
    assert (prefix <= key < prefix_end(prefix)) == (execution == other)


@given(st.tuples(TEXT, TEXT, TEXT | st.none()), st.tuples(TEXT, TEXT, TEXT | st.none()))
def test_rows_of_a_queue_are_those_under_its_prefix(
    queue: tuple[str, str, str | None], other: tuple[str, str, str | None]
) -> None:
    prefix = group_prefix(*other)
    key = group_prefix(*queue) + "0" * 32
    assert (prefix <= key < prefix_end(prefix)) == (queue == other)


@given(PATHS, KEYS, PATHS)
def test_rows_below_a_machine_are_those_of_its_subtree(
    path: tuple[Key, ...], key: Key, other: tuple[Key, ...]
) -> None:
    top = row_segments((*path, key))
    inside = top + "/" <= row_segments(other) < top + "0"
    assert inside == (other[: len(path) + 1] == (*path, key) and len(other) > len(path) + 1)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_timers_sort_by_their_time(one: int, other: int) -> None:
    assert (timer_key(one, "x") < timer_key(other, "x")) == (one < other)


def test_shards_of_ids_never_change() -> None:
    assert [shard_of("ns", str(number), 16) for number in range(8)] == [13, 4, 0, 2, 14, 15, 6, 8]
    counts = [0] * 16
    for number in range(16_000):
        counts[shard_of("ns", f"id-{number}", 16)] += 1
    assert min(counts) > 800


def test_ids_grow_though_the_clock_goes_back() -> None:
    ids = IdSource(random.Random(1))
    times = [5_000_000, 5_000_000, 9_000_000, 3_000_000, 9_500_000, 10_000_000]
    made = [ids.new(time) for time in times for _ in range(100)]
    assert made == sorted(set(made))
    assert {len(id_) for id_ in made} == {32}


def test_deadlines_come_out_in_order_and_can_be_moved() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    chance = random.Random(3)
    model: dict[str, tuple[int, int]] = {}
    for number in range(3000):
        item = str(chance.randrange(50))
        if chance.random() < 0.4:
            deadline = chance.randrange(-5, 20)
            queue.put(item, deadline)
            model[item] = (deadline, number)
        elif chance.random() < 0.5:
            deadline = chance.randrange(-5, 20)
            earlier = item not in model or deadline < model[item][0]
            assert queue.put_earlier(item, deadline) == earlier
            if earlier:
                model[item] = (deadline, number)
        elif chance.random() < 0.5:
            assert queue.discard(item) == (item in model)
            model.pop(item, None)
        else:
            now = chance.randrange(20)
            due = sorted((entry, name) for name, entry in model.items() if entry[0] <= now)
            expected = due[0][1] if due else None
            assert queue.pop_due(now) == expected
            model.pop(expected or "", None)
        assert len(queue) == len(model)
        assert queue.next_deadline() == min((entry[0] for entry in model.values()), default=None)
        assert (item in queue) == (item in model)
        assert queue.deadline(item) == (model[item][0] if item in model else None)


@pytest.mark.parametrize("step", [0, 1, 10**9, 10**12])
def test_item_that_is_moved_over_and_over_leaves_little_behind(step: int) -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    queue.put("first", 0)
    for number in range(2000):
        queue.put("moved", number * step)
        assert queue.next_deadline() == 0
    left = [len(queue._order), *map(len, queue._spans.values()), *map(len, queue._heaps.values())]
    assert sum(left) < 100


def test_backoff_grows_up_to_its_maximum() -> None:
    backoff = Backoff(timedelta(seconds=1), timedelta(seconds=10), factor=2.0, jitter=0.0)
    chance = random.Random(0)
    seconds = [backoff.delay(attempt, chance) / timedelta(seconds=1) for attempt in (1, 2, 3, 4, 5, 6, 10**6)]
    assert seconds == [1, 2, 4, 8, 10, 10, 10]
    jittered = Backoff(timedelta(seconds=1), timedelta(seconds=10), jitter=0.25)
    delays = [jittered.delay(1, chance) for _ in range(200)]
    assert timedelta(seconds=0.75) <= min(delays) < max(delays) <= timedelta(seconds=1)


@given(st.datetimes(max_value=datetime.fromisoformat("2262-01-01"), timezones=st.just(UTC)))
def test_times_are_kept_to_the_microsecond(moment: datetime) -> None:
    assert from_nanos(to_nanos(moment)) == moment


async def test_system_clock_calls_when_it_is_time_and_not_before() -> None:
    clock = SystemClock()
    called: list[int] = []
    done = asyncio.Event()

    def note(time_ns: int) -> None:
        called.append(time_ns)
        if len(called) == 2:
            done.set()

    due = clock.time_ns() + 2_000_000
    clock.call_at(due, lambda: note(clock.time_ns()))
    clock.call_at(due, lambda: note(-1)).cancel()
    # Which of them is the first depends on what else the machine does.
    clock.call_at(0, lambda: note(0))
    await done.wait()
    assert min(called) == 0
    assert max(called) >= due
    assert len(called) == 2


async def test_system_clock_follows_jumps_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    monkeypatch.setattr(SystemClock, "_LONGEST_SLEEP_NS", 1_000_000)
    now = 10**18
    monkeypatch.setattr(SystemClock, "time_ns", lambda _: now)
    done = asyncio.Event()
    clock.call_at(now + 3600 * 10**9, done.set)
    await asyncio.sleep(0.005)
    assert not done.is_set()
    now += 3600 * 10**9
    await done.wait()


async def test_time_limit_goes_by_the_clock() -> None:
    clock = FakeClock()

    async def limited(duration: timedelta | None) -> bool:
        in_time = False
        async with time_limit(clock, duration):
            await asyncio.sleep(0)
            clock.advance(timedelta(seconds=5))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            in_time = True
        return in_time  # noqa: RET504 - mypy takes the limit for one that swallows exceptions

    assert await limited(None)
    assert await limited(timedelta(seconds=6))
    with pytest.raises(TimeoutError):
        await limited(timedelta(seconds=5))
    with pytest.raises(TimeoutError):
        await limited(timedelta())
    clock.advance(timedelta(days=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shard_count": 0},
        {"max_attempts": 0},
        {"concurrency": 0},
        {"queue_buffer": 0},
        {"timer_window": 0},
        {"cached_executions": -1},
        {"loaded_nodes": 0},
        {"delete_rows": -1},
        {"remembered_requests": 0},
        {"lease_seconds": 1},
        {"poll_interval": timedelta()},
        {"task_timeout": timedelta()},
        {"retention": timedelta(-1)},
        {"drain_timeout": timedelta(-1)},
    ],
)
def test_options_with_which_nothing_would_work_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        EngineOptions(**wrong)
