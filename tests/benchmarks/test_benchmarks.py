"""The benchmarks run, and their tables can be printed; what they measure is looked at by people.

Only the bytes of a commit are exact and so are checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Never

import pytest

from tests.benchmarks import (
    bytes_written,
    configured_machines,
    configured_machines_on_redis,
    durable_executions,
    durable_servers,
    event_journal,
    goal_state,
    hanging_destinations,
    many_timers,
    persisted_transition,
    processes,
    server_stores,
    tree_size,
)
from tests.benchmarks.harness import Size, alternate, at_least, at_most, render
from tests.conftest import NewServer
from tests.support.servers import MissingServerError


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


@pytest.mark.server
@pytest.mark.parametrize("comparison", server_stores.COMPARISONS, ids=lambda comparison: comparison.kind)
def test_stores_on_servers_are_compared(comparison: server_stores.Comparison, new_server: NewServer) -> None:
    server = new_server(comparison.kind, durable=True)
    table = render(server_stores.compare(comparison, server, Size.TINY))
    assert comparison.against in table


def test_hanging_destinations_run() -> None:
    (table,) = hanging_destinations.measure(Size.TINY)
    assert "beside five that hang" in render(table)


def test_many_timers_run(tmp_path: Path) -> None:
    table = many_timers.compare("SQLite", f"sqlite:///{tmp_path / 'timers.db'}", Size.TINY)
    assert "until the first timer has fired" in render(table)


@pytest.mark.server
def test_durable_executions_run_on_postgresql(new_server: NewServer) -> None:
    table = render(durable_servers.compare(new_server("postgresql", durable=True), Size.TINY))
    assert "hsm" in table
    assert "procrastinate" in table


def test_events_to_configured_machines_are_compared() -> None:
    (table,) = configured_machines.measure(Size.TINY)
    assert "commands through sqlite3" in render(table)


@pytest.mark.server
def test_events_to_configured_machines_on_redis_are_compared(new_server: NewServer) -> None:
    table = render(configured_machines_on_redis.compare(new_server("valkey"), Size.TINY))
    assert "5 at once" in table


def test_goal_state_engine_runs() -> None:
    queues, jobs, engines = map(render, goal_state.measure(Size.TINY))
    assert "DeadlineQueue: pop" in queues
    assert "beside jobs of APScheduler" in jobs
    assert "evaluations" in engines


@pytest.mark.server
def test_processes_on_postgresql_run(new_server: NewServer) -> None:
    table = render(processes.compare(new_server("postgresql", durable=True).fresh_url, Size.TINY))
    assert "longest wait after a SIGKILL" in table


def test_server_that_is_missing_gets_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: str, *, durable: bool = False) -> Never:
        raise MissingServerError(f"{kind} is missing")

    monkeypatch.setattr(server_stores, "running", missing)
    monkeypatch.setattr(durable_servers, "running", missing)
    monkeypatch.setattr(configured_machines_on_redis, "running", missing)
    for benchmark in (server_stores, durable_servers, configured_machines_on_redis):
        for table in benchmark.measure(Size.TINY):
            assert "is missing" in render(table)


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


@pytest.mark.server
def test_event_journal_is_compared() -> None:
    on_a_file, on_a_server = event_journal.measure(Size.TINY)
    assert "a history of 20 events read" in render(on_a_file)
    assert "PostgreSQL" in render(on_a_server)
