"""Transactions of the stores on servers, against a transaction each through the bare driver.

One is what an engine commits, as in `bench_store`: check a fence, write a node's row under its etag, write
a new task row. The servers are set as durable as they can be: every commit is on disk before it is
believed. The peers do the same on a schema of their own, which their modules in `peers` describe.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import Final, Protocol

import attrs

from persistence.backends import ETCD, MARIADB, POSTGRESQL, REDIS, Backend
from tests.benchmarks import bench_store
from tests.benchmarks.harness import (
    Line,
    Size,
    Table,
    Target,
    alternate,
    at_least,
    isolated_at,
    load_peer,
    median_ratio,
)
from tests.support.servers import MissingServerError, Server, running

__all__ = ["COMPARISONS", "Comparison", "compare", "measure"]

# Rounds, and seconds of one measurement.
_EFFORT: Final = {Size.FULL: (5, 1.5), Size.QUICK: (3, 0.6), Size.TINY: (1, 0.05)}
_CONCURRENCIES: Final = {Size.FULL: (1, 10, 100), Size.QUICK: (1, 10, 100), Size.TINY: (5,)}


class _Multis(Protocol):
    """Multis a second in an empty place on a server."""

    def __call__(self, url: str, concurrency: int, seconds: float) -> float: ...


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

    def missing(self) -> str:
        """What has to be installed for the store, as a sentence; "" if nothing."""
        names = [name for name in self.backend.requires if importlib.util.find_spec(name) is None]
        if not names:
            return ""
        return f"Left out: {' and '.join(names)} missing; install hsm-toolkit[{self.backend.extra}]."


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
    Comparison("etcd", "etcd", ETCD, "etcd_calls", "a Txn each, grpc.aio", at_least(1.5)),
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
    if missing := comparison.missing():
        return _empty(comparison, missing)
    peer = load_peer(comparison.peer, comparison.backend.requires[0], [])
    assert peer is not None
    rounds, seconds = _EFFORT[size]
    concurrencies = _CONCURRENCIES[size]
    contestants: dict[str, _Multis] = {"the store": _store_multis, comparison.against: peer.multis}
    cases = {
        _case(name, concurrency): isolated_at(
            server.fresh_url, partial(multis, concurrency=concurrency, seconds=seconds)
        )
        for concurrency in concurrencies
        for name, multis in contestants.items()
    }
    figures = alternate(cases, rounds)
    lines: list[Line] = []
    for concurrency in concurrencies:
        own, others = (figures[_case(name, concurrency)] for name in contestants)
        lines.append(
            Line(
                f"{concurrency} at once",
                f"{_rate(own)}, peer {_rate(others)}",
                median_ratio(own, others),
                comparison.target if concurrency == max(concurrencies) else None,
            )
        )
    return Table(_title(comparison), "the store is faster by", lines)


def _title(comparison: Comparison) -> str:
    return f"Transactions of two rows a second on {comparison.name}; peer: {comparison.against}"


def _empty(comparison: Comparison, note: str) -> Table:
    return Table(_title(comparison), "", (), (note,))


def _case(name: str, concurrency: int) -> str:
    return f"{name}, {concurrency} at once"


def _store_multis(url: str, concurrency: int, seconds: float) -> float:
    return asyncio.run(bench_store.multis(url, concurrency, seconds, delete=False))


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s"
