"""Transactions of the stores on servers, against a transaction each through the bare driver.

One is what an engine commits, as in `bench_store`: check a fence, write a node's row under its etag, write
a new task row. The servers are set as durable as they can be: every commit is on disk before it is
believed. The peers do the same on a schema of their own, which their modules in `peers` describe.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Final, TypeAlias

import attrs

from persistence.backends import ETCD, MARIADB, POSTGRESQL, REDIS, Backend
from tests.benchmarks import bench_store
from tests.benchmarks.harness import (
    Line,
    Measure,
    Size,
    Table,
    Target,
    alternate,
    at_least,
    isolated,
    load_peer,
    median_ratio,
)
from tests.support.servers import MissingServerError, Server, running

__all__ = ["COMPARISONS", "Comparison", "compare", "measure"]

# Rounds, and seconds of one measurement.
_EFFORT: Final = {Size.FULL: (5, 1.5), Size.QUICK: (3, 0.6), Size.TINY: (1, 0.05)}
_CONCURRENCIES: Final = {Size.FULL: (1, 10, 100), Size.QUICK: (1, 10, 100), Size.TINY: (5,)}

_Multis: TypeAlias = Callable[[str, int, float], float]
"""Multis a second in an empty place on a server, from its URL, the concurrency, and for how many seconds."""


@attrs.frozen
class Comparison:
    """A server and what stands against the store on it.

    Attributes:
        kind: of `tests.support.servers`.
        name: of the database.
        backend: its needs.
        peer: the module of the peer.
        against: what the peer is.
        target: of the ratio at the highest concurrency.
    """

    kind: str
    name: str
    backend: Backend
    peer: str
    against: str
    target: Target


COMPARISONS: Final = (
    Comparison(
        "postgresql",
        "PostgreSQL",
        POSTGRESQL,
        "postgresql_pool",
        "a transaction each, psycopg, pool of 20",
        at_least(5),
    ),
    Comparison(
        "mariadb",
        "MariaDB",
        MARIADB,
        "mariadb_pool",
        "a transaction each, asyncmy, pool of 20",
        at_least(3),
    ),
    Comparison(
        "valkey", "Valkey", REDIS, "valkey_pool", "an EVALSHA each, redis-py, pool of 20", at_least(1.5)
    ),
    Comparison("etcd", "etcd", ETCD, "etcd_calls", "a Txn each, grpc.aio, 20 in flight", at_least(1.5)),
)


def measure(size: Size) -> Iterator[Table]:
    """One table a server."""
    for comparison in COMPARISONS:
        try:
            with running(comparison.kind, durable=True) as server:
                yield compare(comparison, server, size)
        except MissingServerError as error:
            yield _empty(comparison, f"Left out: {error}.")


def compare(comparison: Comparison, server: Server, size: Size) -> Table:
    """Measure the store and its peer on a running server, each time in an empty place."""
    missing = [name for name in comparison.backend.requires if importlib.util.find_spec(name) is None]
    if missing:
        extra = comparison.backend.extra
        return _empty(comparison, f"Left out: {', '.join(missing)} is missing; install hsm-toolkit[{extra}].")
    notes: list[str] = []
    peer = load_peer(comparison.peer, comparison.backend.requires[0], notes)
    assert peer is not None
    rounds, seconds = _EFFORT[size]
    concurrencies = _CONCURRENCIES[size]
    contestants: dict[str, _Multis] = {"the store": _store_multis, comparison.against: peer.multis}
    cases = {
        _case(name, concurrency): _in_a_fresh_place(server, multis, concurrency, seconds)
        for concurrency in concurrencies
        for name, multis in contestants.items()
    }
    figures = alternate(cases, rounds)
    lines: list[Line] = []
    for concurrency in concurrencies:
        own, others = (figures[_case(name, concurrency)] for name in contestants)
        target = comparison.target if concurrency == max(concurrencies) else None
        lines.append(Line(_case("the store", concurrency), _rate(own)))
        lines.append(
            Line(_case(comparison.against, concurrency), _rate(others), median_ratio(own, others), target)
        )
    return Table(_title(comparison), "the store is faster by", lines, notes)


def _title(comparison: Comparison) -> str:
    return f"Transactions of two rows a second on {comparison.name}"


def _empty(comparison: Comparison, note: str) -> Table:
    return Table(_title(comparison), "", (), (note,))


def _case(name: str, concurrency: int) -> str:
    return f"{name}, {concurrency} at once"


def _in_a_fresh_place(server: Server, multis: _Multis, concurrency: int, seconds: float) -> Measure:
    def measure() -> float:
        return isolated(partial(multis, server.fresh_url(), concurrency, seconds))()

    return measure


def _store_multis(url: str, concurrency: int, seconds: float) -> float:
    return asyncio.run(bench_store.multis(url, concurrency, seconds, delete=False))


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s"
