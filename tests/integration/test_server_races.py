"""Two processes race on each kind of server; `tests/crash/store_races.py` does the same for longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.crash.store_races import Multi, Scale, run_races, unserialisable
from tests.support.servers import KINDS, Server

SMALL = Scale(first_writes=6, callers=20, increments=4, multi_rounds=2, multis=40, absence_rounds=3, pairs=10)


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
async def test_processes_that_race_lose_nothing(kind: str, server_of: Callable[[str], Server]) -> None:
    outcomes = await run_races(server_of(kind).fresh_url(), SMALL)
    assert [outcome.race for outcome in outcomes if outcome.problems] == [], outcomes
    assert any(outcome.interleaved for outcome in outcomes)


FIRST = Multi("first", {"a": None, "b": None}, ["a", "b"], "1")


def test_a_chain_of_multis_is_serialisable() -> None:
    second = Multi("second", {"a": "1", "b": "1"}, ["a"], "2")
    third = Multi("third", {"a": "2", "b": "1"}, ["b"], "3")
    assert unserialisable([third, FIRST, second], {"a": "2", "b": "3"}) == []


@pytest.mark.parametrize(
    ("others", "stored"),
    [
        pytest.param([Multi("lost", {"a": "1"}, ["a"], "2")], {"a": "1", "b": "1"}, id="not stored"),
        pytest.param(
            [Multi("x", {"a": "1"}, ["a"], "2"), Multi("y", {"a": "1"}, ["a"], "3")],
            {"a": "3", "b": "1"},
            id="lost update",
        ),
        pytest.param(
            [Multi("x", {"a": "1", "b": "1"}, ["a"], "2"), Multi("y", {"a": "1", "b": "1"}, ["b"], "3")],
            {"a": "2", "b": "3"},
            id="write skew",
        ),
        pytest.param([Multi("x", {"a": "7"}, ["a"], "2")], {"a": "2", "b": "1"}, id="unknown etag"),
        pytest.param([Multi("x", {"a": "1"}, ["a"], "1")], {"a": "1", "b": "1"}, id="same etag"),
    ],
)
def test_what_is_not_serialisable_is_found(others: list[Multi], stored: dict[str, str | None]) -> None:
    assert unserialisable([FIRST, *others], stored)
