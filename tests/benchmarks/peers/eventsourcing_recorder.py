"""Peer: eventsourcing, by the recorders that its applications store their events with, and by an aggregate.

As many threads append as ours has tasks; its recorders are synchronous. SQLite is in its own WAL mode with
synchronous=FULL, SQLite's default, which it leaves as it is; ours is the same. PostgreSQL is the same server, with
synchronous_commit on, as ours has it.
On SQLite a pool of one connection, which the threads take turns with, is its fastest setting at concurrency 100,
and on PostgreSQL a pool of ten: it locks the table for each insert.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from eventsourcing.application import Repository
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import (
    ApplicationRecorder,
    DatetimeAsISO,
    EventStore,
    JSONTranscoder,
    Mapper,
    StoredEvent,
    UUIDAsHex,
)
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

__all__ = ["appends_a_second", "events_read_a_second", "events_rebuilt_a_second", "feed_events_a_second"]

_TOPIC: Final = "benchmarks:Happened"
_BATCH: Final = 1000


@contextmanager
def _recorder(place: str, concurrency: int = 1) -> Iterator[ApplicationRecorder]:
    if "://" not in place:
        datastore = SQLiteDatastore(place, pool_size=1, max_overflow=0, pool_timeout=120)
        recorder: SQLiteApplicationRecorder | PostgresApplicationRecorder
        recorder = SQLiteApplicationRecorder(datastore)
        recorder.create_table()
        with datastore.get_connection(commit=False) as connection:
            cursor = connection.cursor()
            cursor.execute("PRAGMA synchronous")
            assert cursor.fetchone()[0] == 2, "not as durable as ours"
        try:
            yield recorder
        finally:
            datastore.close()
        return
    parts = urlsplit(place)
    server = PostgresDatastore(
        parts.path.lstrip("/"),
        parts.hostname or "",
        parts.port or 5432,
        parts.username or "",
        parts.password or "",
        pool_size=min(concurrency, 10),
        connect_timeout=120,
    )
    with server:
        with server.transaction(commit=False) as settings:
            settings.execute("SHOW synchronous_commit")
            assert settings.fetchone() == {"synchronous_commit": "on"}, "not as durable as ours"
        recorder = PostgresApplicationRecorder(server, events_table_name="events")
        recorder.create_table()
        yield recorder


def appends_a_second(place: str, appends: int, concurrency: int, payload: bytes) -> float:
    """Append events to as many histories as there are threads; each append is a transaction."""
    numbers = itertools.count()

    def client() -> None:
        originator = uuid4()
        version = 0
        while next(numbers) < appends:
            version += 1
            recorder.insert_events([StoredEvent(originator, version, _TOPIC, payload)])

    with _recorder(place, concurrency) as recorder, ThreadPoolExecutor(concurrency) as pool:
        recorder.insert_events([StoredEvent(uuid4(), 1, _TOPIC, payload)])
        start = time.perf_counter()
        for future in [pool.submit(client) for _ in range(concurrency)]:
            future.result()
        return appends / (time.perf_counter() - start)


def events_read_a_second(place: str, events: int, rounds: int, payload: bytes) -> float:
    """Read one history of so many events, again and again."""
    with _recorder(place) as recorder:
        originator = uuid4()
        for first in range(1, events + 1, _BATCH):
            versions = range(first, min(first + _BATCH, events + 1))
            recorder.insert_events([StoredEvent(originator, each, _TOPIC, payload) for each in versions])
        start = time.perf_counter()
        for _ in range(rounds):
            assert len(recorder.select_events(originator)) == events
        return rounds * events / (time.perf_counter() - start)


def feed_events_a_second(place: str, events: int, payload: bytes) -> float:
    """Read the notifications of all histories, from the beginning to the end."""
    with _recorder(place) as recorder:
        for first in range(0, events, _BATCH):
            number = min(_BATCH, events - first)
            recorder.insert_events([StoredEvent(uuid4(), 1, _TOPIC, payload) for _ in range(number)])
        start = time.perf_counter()
        position, seen = 0, 0
        while notifications := recorder.select_notifications(position + 1, 500):
            position = notifications[-1].id
            seen += len(notifications)
        assert seen == events
        return events / (time.perf_counter() - start)


class _Account(Aggregate):
    def __init__(self) -> None:
        self.balance = 0

    @event("Deposited")
    def deposit(self, amount: int) -> None:
        self.balance += amount


def events_rebuilt_a_second(place: str, events: int, rounds: int) -> float:
    """Rebuild the state that so many events come to, again and again, without a snapshot or a cache."""
    transcoder = JSONTranscoder()
    transcoder.register(UUIDAsHex())
    transcoder.register(DatetimeAsISO())
    with _recorder(place) as recorder:
        store: EventStore[UUID] = EventStore(Mapper[UUID](transcoder), recorder)
        account = _Account()
        # The first event is that it was opened.
        for number in range(1, events):
            account.deposit(1)
            if number % _BATCH == 0:
                store.put(account.collect_events())
        store.put(account.collect_events())
        start = time.perf_counter()
        for _ in range(rounds):
            found: _Account = Repository(store).get(account.id)
            assert (found.balance, found.version) == (events - 1, events)
        return rounds * events / (time.perf_counter() - start)
