from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from persistence.journal import EPOCH, EventId, EventIdSource, InvalidEventError
from tests.support.stores import SetClock


def source(clock: SetClock, seed: int = 1) -> EventIdSource:
    return EventIdSource(clock, random.Random(seed))


def test_ids_grow_within_a_millisecond_and_when_the_clock_steps_back() -> None:
    clock = SetClock()
    ids = source(clock)
    made: list[EventId] = []
    for step in (0.0, 0.0, 0.001, -10.0, 0.0, 20.0):
        clock.advance(step)
        made += [ids.new() for _ in range(100)]

    assert made == sorted(set(made))


def test_id_tells_when_it_was_made() -> None:
    clock = SetClock()

    assert source(clock).new().time == datetime.fromtimestamp(1_700_000_000, UTC)


@given(st.binary(min_size=16, max_size=16))
def test_any_id_tells_a_time(value: bytes) -> None:
    assert EPOCH.time <= EventId(value).time <= EventId(b"\xff" * 16).time


@given(st.binary(min_size=16, max_size=16))
def test_id_is_read_back_from_what_it_prints(value: bytes) -> None:
    id_ = EventId(value)

    assert EventId.parse(str(id_)) == id_ == EventId.parse(str(id_).lower())


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_ids_compare_as_they_print(one: bytes, other: bytes) -> None:
    assert (EventId(one) < EventId(other)) == (str(EventId(one)) < str(EventId(other)))


@pytest.mark.parametrize("text", ["", "0" * 25, "0" * 27, "U" * 26, "8" + "0" * 25, "é" * 26, "0" * 25 + "ß"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidEventError, match="is no event id"):
        EventId.parse(text)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_id_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidEventError, match="16 bytes"):
        EventId(bytes(size))


def test_new_id_is_greater_than_what_was_seen_of_a_clock_that_is_ahead() -> None:
    ahead, behind = SetClock(), SetClock()
    ahead.advance(5)
    seen = source(ahead).new()
    ids = source(behind, 2)

    ids.observe(seen)

    assert ids.new() > seen


def test_clock_that_is_far_ahead_does_not_become_that_of_everybody() -> None:
    ahead, behind = SetClock(), SetClock()
    ahead.advance(timedelta(days=300).total_seconds())
    seen = source(ahead).new()
    ids = source(behind, 2)

    ids.observe(seen)
    follower = ids.new(after=seen)

    assert follower > seen
    assert ids.new() < seen


def test_nothing_follows_the_last_id() -> None:
    with pytest.raises(InvalidEventError, match="no id follows"):
        source(SetClock()).new(EventId(b"\xff" * 16))


def test_epoch_is_before_every_id() -> None:
    assert source(SetClock()).new() > EPOCH


FORKED = """
import os, sys
from persistence.journal import EventId, EventIdSource

ids = EventIdSource(lambda: 10**18)
seen = ids.new()
for _ in range(2):
    if os.fork() == 0:
        sys.stdout.write(f"{ids.new()}\\n")
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
def test_forked_processes_do_not_make_the_same_ids_within_a_millisecond() -> None:
    """Two commits with one stamp would write each other's rows in the queue for the feed over."""
    told = subprocess.run([sys.executable, "-c", FORKED], check=True, capture_output=True, text=True).stdout

    assert len(set(told.split())) == 2
