from __future__ import annotations

from uuid import uuid4

import pytest

from hsm.testing import Call, FaultyStore
from persistence.journal import EPOCH, NO_VC, Journal, JournalOptions, ZlibCodec
from persistence.store import EngineStore, SetRequest
from tests.support.histories import codes, numbered, rows

HISTORY = uuid4()


async def test_snapshot_comes_back_with_its_place(journal: Journal) -> None:
    version = (await journal.commit(HISTORY, numbered(1, 2), EPOCH)).version
    assert await journal.snapshots.save(HISTORY, version, b"three", version=1)
    await journal.commit(HISTORY, numbered(3), NO_VC)

    snapshot = await journal.snapshots.load(HISTORY, version=1)

    assert snapshot is not None
    assert (snapshot.event_id, snapshot.data) == (version, b"three")
    assert await codes(journal, HISTORY, snapshot.event_id) == [3]


async def test_snapshot_of_another_version_is_none(journal: Journal) -> None:
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    await journal.snapshots.save(HISTORY, version, b"", version=2)

    assert await journal.snapshots.load(HISTORY, version=1) is None
    assert await journal.snapshots.load(HISTORY, version=3) is None


async def test_later_snapshot_is_kept(journal: Journal) -> None:
    first, second = (await journal.commit(HISTORY, numbered(1, 2), EPOCH)).events
    await journal.snapshots.save(HISTORY, second.id, b"late", version=1)

    assert not await journal.snapshots.save(HISTORY, first.id, b"early", version=1)
    assert await journal.snapshots.save(HISTORY, first.id, b"of new code", version=2)
    assert not await journal.snapshots.save(HISTORY, second.id, b"of old code", version=1)


async def test_dropped_snapshot_is_none(journal: Journal) -> None:
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    await journal.snapshots.save(HISTORY, version, b"", version=1)
    await journal.snapshots.drop(HISTORY)
    await journal.snapshots.drop(HISTORY)

    assert await journal.snapshots.load(HISTORY, version=1) is None
    assert await rows(journal.store, journal, "s/") == []


async def test_snapshot_of_an_earlier_life_is_none(journal: Journal) -> None:
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    await journal.snapshots.save(HISTORY, version, b"", version=1)
    await journal.delete(HISTORY, NO_VC)
    assert await journal.snapshots.load(HISTORY, version=1) is None
    await journal.commit(HISTORY, numbered(2), EPOCH)

    assert await journal.snapshots.load(HISTORY, version=1) is None


async def test_snapshot_of_what_was_never_committed_is_none(journal: Journal) -> None:
    await journal.commit(HISTORY, numbered(1), EPOCH)
    await journal.snapshots.save(HISTORY, journal.ids.new(), b"", version=1)

    assert await journal.snapshots.load(HISTORY, version=1) is None


@pytest.mark.parametrize("damage", [b"\xff\xff", b""])
async def test_damaged_snapshot_is_none_and_can_be_replaced(journal: Journal, damage: bytes) -> None:
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    key = f"s/{HISTORY.hex}"
    await journal.store.set(SetRequest(key=key, value=damage, partition=journal.partition))

    assert await journal.snapshots.load(HISTORY, version=1) is None
    assert await journal.snapshots.save(HISTORY, version, b"new", version=1)
    assert await journal.snapshots.load(HISTORY, version=1) is not None


async def test_lost_race_is_no_error(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal, other = Journal(faulty, "tests"), Journal(store, "tests")
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version

    async def race(call: Call) -> None:
        if call.method == "set":
            faulty.before = None
            await other.snapshots.save(HISTORY, version, b"first", version=1)

    faulty.before = race

    assert not await journal.snapshots.save(HISTORY, version, b"second", version=1)


async def test_snapshots_are_encoded_as_events_are(store: EngineStore) -> None:
    journal = Journal(store, "tests", options=JournalOptions(codec=ZlibCodec()))
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    await journal.snapshots.save(HISTORY, version, b"x" * 10_000, version=1)

    (item,) = await rows(store, journal, "s/")
    assert len(item.value) < 500
    snapshot = await journal.snapshots.load(HISTORY, version=1)
    assert snapshot is not None
    assert snapshot.data == b"x" * 10_000
    assert await Journal(store, "tests").snapshots.load(HISTORY, version=1) is None  # it lacks the codec
