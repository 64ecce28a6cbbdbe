"""A few dozen stories; `tests/crash/engine_simulation.py` tells thousands."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.breaks import broken
from tests.simulation.story import simulate

SCRIPT = Path(__file__).parents[1] / "crash" / "engine_simulation.py"


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """What goes wrong on purpose need not be told."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_everything_comes_to_its_end_and_adds_up(first: int) -> None:
    problems = [result for seed in range(first, first + 20) if (result := simulate(seed)).problem]
    assert problems == [], "\n".join(problems[0].trace)


@pytest.mark.parametrize(
    "defect",
    [
        *("stale-reads", "polls", "letters", "pauses", "timers", "requests"),
        *("ends", "reports", "refreshes", "retention", "rates", "breakers"),
    ],
)
def test_broken_engine_is_found_out(defect: str) -> None:
    with broken(defect):
        assert any(simulate(seed).problem for seed in range(300))


def test_same_seed_tells_the_same_story_in_another_process() -> None:
    result = simulate(5)
    told = subprocess.run(
        [sys.executable, str(SCRIPT), "--seed", "5"], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.splitlines()[:-1] == result.trace
    assert told.stdout.rstrip().endswith(f"the trace is {result.digest}")
