"""The benchmarks run, and their tables can be printed; what they measure is looked at by people.

Only the bytes of a commit are exact and so are checked.
"""

from __future__ import annotations

import pytest

from tests.benchmarks import bytes_written, durable_executions, persisted_transition, tree_size
from tests.benchmarks.harness import Size, alternate, at_least, at_most, render


def test_persisted_transition_runs() -> None:
    for table in persisted_transition.measure(Size.TINY):
        assert "hsm" in render(table)


def test_tree_size_runs() -> None:
    transitions, loads = tree_size.measure(Size.TINY)
    assert "5 nodes" in render(transitions)
    assert "one leaf" in render(loads)


def test_transition_in_a_large_tree_writes_as_much_as_in_a_small_one() -> None:
    (table,) = bytes_written.measure(Size.TINY)
    judged = [line for line in table.lines if line.target is not None]
    assert judged
    for line in judged:
        assert line.ratio is not None
        assert line.target is not None
        assert line.target.met(line.ratio), render(table)


# DBOS leaves to the collector what it should have closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_durable_executions_run() -> None:
    peers, store = durable_executions.measure(Size.TINY)
    assert "hsm" in render(peers)
    assert "replayed" in render(store)


def test_rounds_alternate() -> None:
    seen: list[str] = []

    def case(name: str, figure: float) -> float:
        seen.append(name)
        return figure

    figures = alternate({"a": lambda: case("a", 1.0), "b": lambda: case("b", 2.0)}, rounds=3)
    assert "".join(seen) == "abbaab"
    assert figures == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_targets_bound_from_below_or_from_above() -> None:
    assert at_least(4).met(4.0)
    assert not at_least(4).met(3.9)
    assert at_most(1.3).met(1.3)
    assert not at_most(1.3).met(1.4)
