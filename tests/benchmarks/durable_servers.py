"""Durable executions a second on PostgreSQL, against DBOS and procrastinate on the same server; and on other servers.

An execution is the one of `durable_executions`. The servers have every commit on disk before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from tests.benchmarks.durable_executions import executions_a_second
from tests.benchmarks.harness import (
    Line,
    Measure,
    Size,
    Table,
    Target,
    alternate,
    at_least,
    isolated_at,
    load_peer,
    median_ratio,
)
from tests.benchmarks.server_stores import COMPARISONS
from tests.support.servers import MissingServerError, Server, running

__all__ = ["compare", "measure", "new_database"]

# Rounds, executions of ours in a round, workflows of DBOS, and jobs of procrastinate.
_EFFORT: Final = {
    Size.FULL: (5, 10_000, 600, 1000),
    Size.QUICK: (3, 3000, 200, 400),
    Size.TINY: (1, 20, 5, 5),
}
_CONCURRENCY: Final = {Size.FULL: 100, Size.QUICK: 100, Size.TINY: 5}
_TARGETS: Final[Mapping[str, Target]] = {"DBOS": at_least(20), "procrastinate": at_least(10)}


def measure(size: Size) -> Iterator[Table]:
    """One table against the peers, one of the other servers."""
    try:
        with running("postgresql", durable=True) as server:
            yield compare(server, size)
    except MissingServerError as error:
        yield Table(_title("PostgreSQL", size), "", (), (f"Left out: {error}.",))
    yield _on_all_servers(size)


def compare(server: Server, size: Size) -> Table:
    """Measure the engine and its peers on a running PostgreSQL, each time in an empty place."""
    rounds, executions, workflows, jobs = _EFFORT[size]
    concurrency = _CONCURRENCY[size]
    notes: list[str] = []
    rate = partial(executions_a_second, executions=executions, concurrency=concurrency)
    cases = {"hsm": isolated_at(server.fresh_url, rate)}
    database = partial(new_database, server)
    if (dbos := load_peer("dbos_workflows", "dbos", notes)) is not None:
        rate = partial(dbos.workflows_a_second, workflows=workflows, concurrency=concurrency)
        cases["DBOS"] = isolated_at(database, rate)
    if (procrastinate := load_peer("procrastinate_jobs", "procrastinate", notes)) is not None:
        rate = partial(procrastinate.jobs_a_second, jobs=jobs, concurrency=concurrency)
        cases["procrastinate"] = isolated_at(database, rate)
    figures = alternate(cases, rounds)
    own = figures.pop("hsm")
    lines = [Line("hsm", _rate(own))]
    lines.extend(
        Line(name, _rate(rates), median_ratio(own, rates), _TARGETS[name]) for name, rates in figures.items()
    )
    return Table(_title("PostgreSQL", size), "hsm is faster by", lines, notes)


def _on_all_servers(size: Size) -> Table:
    rounds, executions, _, _ = _EFFORT[size]
    rate = partial(executions_a_second, executions=executions, concurrency=_CONCURRENCY[size])
    notes: list[str] = []
    cases: dict[str, Measure] = {}
    with ExitStack() as stack:
        for comparison in COMPARISONS:
            if missing := comparison.missing():
                notes.append(missing)
                continue
            try:
                server = stack.enter_context(running(comparison.kind, durable=True))
            except MissingServerError as error:
                notes.append(f"Left out: {error}.")
                continue
            cases[f"hsm on {comparison.name}"] = isolated_at(server.fresh_url, rate)
        figures = alternate(cases, rounds)
    lines = [Line(name, _rate(rates)) for name, rates in figures.items()]
    return Table(_title("every server", size), "", lines, notes)


def _title(where: str, size: Size) -> str:
    return f"Durable executions a second on {where}, {_CONCURRENCY[size]} at once"


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s"


def new_database(server: Server) -> str:
    """The URL of an empty database on PostgreSQL, for those who know no schemas."""
    import psycopg

    parts = urlsplit(server.fresh_url())
    database = parts.query.removeprefix("schema=")
    administrator = parts._replace(query="").geturl()
    with psycopg.connect(administrator, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{database}"')
    return parts._replace(path=f"/{database}", query="").geturl()
