"""Events a second, appended and read, against the eventsourcing library on the same SQLite disk and PostgreSQL.

Every append is one event of a history of the client's own, with the version before it expected, and returns
when it is on disk.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final
from uuid import uuid4

from persistence import connect
from persistence.journal import EPOCH, NO_VC, Journal, NewEvent
from tests.benchmarks.durable_servers import new_database
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
from tests.benchmarks.rebuilt_aggregates import events_rebuilt_a_second
from tests.support.servers import MissingServerError, running

__all__ = ["measure"]

PAYLOAD: Final = NewEvent(bytes.fromhex("086f") + b"\xda\x04\x40" + b"x" * 64).payload

# Rounds; appends alone, appends at once; events of a history, readings of it; events of the feed.
_EFFORT: Final = {
    Size.FULL: (5, 2000, 20_000, 10_000, 5, 20_000),
    Size.QUICK: (3, 500, 5000, 10_000, 2, 5000),
    Size.TINY: (1, 5, 20, 20, 1, 20),
}
_CONCURRENCY: Final = {Size.FULL: 100, Size.QUICK: 100, Size.TINY: 5}


def measure(size: Size) -> Iterator[Table]:
    """A table for SQLite, one for PostgreSQL."""
    directory = Path(tempfile.mkdtemp(prefix="journal-benchmark-"))
    numbers = itertools.count()
    try:
        files = partial(_new_file, directory, numbers)
        yield _compare("SQLite", size, lambda: f"sqlite:///{files()}", files)
    finally:
        shutil.rmtree(directory)
    try:
        with running("postgresql", durable=True) as server:
            yield _compare("PostgreSQL", size, server.fresh_url, partial(new_database, server))
    except MissingServerError as error:
        yield Table(_title("PostgreSQL"), "", (), (f"Left out: {error}.",))


def _new_file(directory: Path, numbers: Iterator[int]) -> str:
    return str(directory / f"{next(numbers)}.db")


def _title(where: str) -> str:
    return f"Event journal on {where}, events a second"


def _compare(where: str, size: Size, place: Callable[[], str], peer_place: Callable[[], str]) -> Table:
    rounds, alone, at_once, events, readings, feed = _EFFORT[size]
    concurrency = _CONCURRENCY[size]
    notes: list[str] = []
    peer = load_peer("eventsourcing_recorder", "eventsourcing", notes)
    lines: list[Line] = []
    for name, own, theirs, target in (
        (
            "appends, 1 at a time",
            partial(appends_a_second, appends=alone, concurrency=1),
            peer and partial(peer.appends_a_second, appends=alone, concurrency=1, payload=PAYLOAD),
            at_least(0.8),
        ),
        (
            f"appends, {concurrency} at once",
            partial(appends_a_second, appends=at_once, concurrency=concurrency),
            peer
            and partial(
                peer.appends_a_second, appends=at_once // 4, concurrency=concurrency, payload=PAYLOAD
            ),
            at_least(5),
        ),
        (
            f"a history of {events:,} events read",
            partial(events_read_a_second, events=events, rounds=readings),
            peer and partial(peer.events_read_a_second, events=events, rounds=readings, payload=PAYLOAD),
            None,
        ),
        (
            f"an aggregate of {events:,} events rebuilt",
            partial(events_rebuilt_a_second, events=events, rounds=readings),
            peer and partial(peer.events_rebuilt_a_second, events=events, rounds=readings),
            None,
        ),
        (
            f"a feed of {feed:,} events read for the first time",
            partial(feed_events_a_second, events=feed),
            peer and partial(peer.feed_events_a_second, events=feed, payload=PAYLOAD),
            None,
        ),
    ):
        cases: dict[str, Measure] = {"own": isolated_at(place, own)}
        if theirs is not None:
            cases["peer"] = isolated_at(peer_place, theirs)
        lines += _lines(name, alternate(cases, rounds), target)
    notes.append(
        "The feed's positions are given when it is first read, which is part of its figure; eventsourcing gives "
        "them when it appends. An aggregate is an account that is paid into; both write its events as JSON, and rebuild it "
        "without a snapshot or a cache."
    )
    return Table(_title(where), "hsm is faster by", lines, notes)


def _lines(name: str, figures: Mapping[str, list[float]], target: Target | None) -> Iterator[Line]:
    own = figures["own"]
    if "peer" not in figures:
        yield Line(name, f"{median(own):,.0f}/s")
        return
    theirs = figures["peer"]
    yield Line(
        name,
        f"{median(own):,.0f}/s, eventsourcing {median(theirs):,.0f}/s",
        median_ratio(own, theirs),
        target,
    )


def appends_a_second(url: str, appends: int, concurrency: int) -> float:
    """Append events to as many histories as there are tasks."""
    return asyncio.run(_appends_a_second(url, appends, concurrency))


async def _appends_a_second(url: str, appends: int, concurrency: int) -> float:
    numbers = itertools.count()
    event = NewEvent(PAYLOAD)

    async def client(journal: Journal) -> None:
        history, version = uuid4(), EPOCH
        while next(numbers) < appends:
            version = (await journal.commit(history, (event,), version)).version

    async with connect(url) as store, Journal(store, "benchmark") as journal:
        await journal.commit(uuid4(), (event,), NO_VC)
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client(journal))
        return appends / (time.perf_counter() - start)


def events_read_a_second(url: str, events: int, rounds: int) -> float:
    """Read one history of so many events, again and again."""
    return asyncio.run(_events_read_a_second(url, events, rounds))


async def _events_read_a_second(url: str, events: int, rounds: int) -> float:
    batch = 1000
    history, version = uuid4(), EPOCH
    async with connect(url) as store, Journal(store, "benchmark") as journal:
        for first in range(0, events, batch):
            number = min(batch, events - first)
            version = (await journal.commit(history, [NewEvent(PAYLOAD)] * number, version)).version
        start = time.perf_counter()
        for _ in range(rounds):
            assert len([event async for event in journal.find(history)]) == events
        return rounds * events / (time.perf_counter() - start)


def feed_events_a_second(url: str, events: int) -> float:
    """Read the feed of as many histories, from the beginning to the end."""
    return asyncio.run(_feed_events_a_second(url, events))


async def _feed_events_a_second(url: str, events: int) -> float:
    numbers = itertools.count()
    event = NewEvent(PAYLOAD)

    async def client(journal: Journal) -> None:
        while next(numbers) < events:
            await journal.commit(uuid4(), (event,), EPOCH)

    async with connect(url) as store, Journal(store, "benchmark") as journal:
        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(client(journal))
        start = time.perf_counter()
        position = 0
        while items := await journal.feed.read(position):
            position = items[-1].position
        assert position == events
        return events / (time.perf_counter() - start)
