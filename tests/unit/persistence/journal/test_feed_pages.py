"""Pages of the feed: what they cost, and what is void in them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from hsm.testing import Call, CutOffError, FakeClock, FaultyStore
from persistence.journal import (
    EPOCH,
    NO_VC,
    FeedItem,
    FeedKind,
    Journal,
    PositionTrimmedError,
    Retention,
    RetentionOptions,
)
from persistence.proto.journal_pb2 import FeedBlock
from persistence.store import EngineStore
from tests.support.histories import numbered, rows

HISTORY = uuid4()
EVENT, GONE, DELETED = FeedKind.EVENT, FeedKind.GONE, FeedKind.DELETED
MONTH = timedelta(days=30)


class HideAll:
    """Everything is hidden at once, and removed with the next run."""

    def is_new_epoch(self, last: object, following: object, now: object) -> bool:
        del last, now
        return following is None

    def is_new_tail(self, epoch: object, set_at: object, now: object) -> bool:
        del epoch, set_at, now
        return True


async def kinds(journal: Journal) -> list[FeedKind]:
    await journal.feed.last_position()
    return [item.kind for item in await journal.feed.read()]


async def voids(journal: Journal) -> list[UUID]:
    return [UUID(hex=item.key[-32:]) for item in await rows(journal.store, journal, "v/")]


def positions(items: list[FeedItem]) -> list[int]:
    return [item.position for item in items]


async def test_page_is_read_in_a_few_calls(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    await asyncio.gather(*(journal.commit(uuid4(), numbered(n), EPOCH) for n in range(1200)))
    assert await journal.feed.last_position() == 1200
    calls: Counter[str] = Counter()

    async def count(call: Call) -> None:
        calls[call.method] += 1

    faulty.before = count
    first = await journal.feed.read()
    assert len(first) == 500
    # Blocks, what is void, and the events, whatever their number.
    assert calls["bulk_get"] == 1
    assert calls["scan"] <= 4
    calls.clear()
    items = [*first, *await journal.feed.read(500), *await journal.feed.read(1000)]
    assert positions(items) == list(range(1, 1201))
    assert calls["scan"] <= 8
    assert calls["bulk_get"] == 2


async def test_many_small_blocks_are_read_together(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    for number in range(40):
        await journal.commit(HISTORY, numbered(number), NO_VC)
        await journal.feed.last_position()
    assert len(await rows(store, journal, "g/")) == 40
    calls = 0

    async def count(call: Call) -> None:
        nonlocal calls
        calls += call.method == "scan"

    faulty.before = count
    for _ in range(2):
        calls = 0
        assert positions(list(await journal.feed.read(limit=38))) == list(range(1, 39))
    assert calls == 2


async def test_blocks_are_about_a_page(journal: Journal) -> None:
    most = min(journal.store.limits.operations - 2, 650)
    await journal.commit(HISTORY, numbered(*range(most)), EPOCH)
    await asyncio.gather(*(journal.commit(uuid4(), numbered(1, 2, 3), EPOCH) for _ in range(400)))
    assert await journal.feed.last_position() == most + 1200

    blocks = [FeedBlock.FromString(item.value) for item in await rows(journal.store, journal, "g/")]
    sizes = [sum(block.counts) for block in blocks]

    assert sum(sizes) == most + 1200
    assert [block.first_position for block in blocks] == [1 + sum(sizes[:n]) for n in range(len(sizes))]
    assert all(size <= 500 or len(block.counts) == 1 for size, block in zip(sizes, blocks, strict=True))
    assert len(blocks) <= 12


async def test_first_page_of_a_long_queue_does_not_wait_for_the_last_one(journal: Journal) -> None:
    most = min(journal.store.limits.operations - 2, 900)
    version = EPOCH
    for number in range(6 * 900 // most):
        version = (await journal.commit(HISTORY, numbered(*[number] * most), version)).version
    waiting = len(await rows(journal.store, journal, "o/"))

    assert positions(list(await journal.feed.read())) == list(range(1, 501))
    assert 0 < len(await rows(journal.store, journal, "o/")) < waiting
    assert await journal.feed.last_position() == waiting * most
    assert await rows(journal.store, journal, "o/") == []


async def test_page_beyond_the_end_is_empty(journal: Journal) -> None:
    await journal.commit(HISTORY, numbered(1, 2), EPOCH)

    assert await journal.feed.read(2) == []
    assert await journal.feed.read(7) == []
    assert await journal.feed.known_position() == 2


async def test_page_ends_where_the_feed_is_trimmed_meanwhile(store: EngineStore) -> None:
    """Half of the page was read when the other half went away."""
    faulty = FaultyStore(store)
    journal, other = Journal(faulty, "tests"), Journal(store, "tests")
    for number in range(6):
        await other.commit(HISTORY, numbered(number), NO_VC)
        await other.feed.last_position()
    scans = 0

    async def trim(call: Call) -> None:
        nonlocal scans
        scans += call.method == "scan"
        if scans == 2:
            faulty.before = None
            await other.feed.trim(4)

    faulty.before = trim
    items = await journal.feed.read()

    assert positions(list(items)) == [1, 2]
    with pytest.raises(PositionTrimmedError):
        await journal.feed.read(2)
    assert positions(list(await journal.feed.read(4))) == [5, 6]


# What is void


async def test_deletion_is_seen_before_and_after_the_events_are_removed(
    store: EngineStore, clock: FakeClock
) -> None:
    journal = Journal(store, "tests", clock=clock)
    await journal.commit(HISTORY, numbered(1, 2), EPOCH)
    await journal.commit(uuid4(), numbered(3), EPOCH)
    assert await kinds(journal) == [EVENT] * 3
    await journal.delete(HISTORY, NO_VC)

    for _ in range(3):
        assert await kinds(journal) == [GONE, GONE, EVENT, DELETED]
        assert await voids(journal) == ([HISTORY] if await rows(store, journal, f"e/{HISTORY.hex}") else [])
        clock.advance(MONTH)
        await Retention(journal).collect()

    assert await voids(journal) == []
    assert await rows(store, journal, f"e/{HISTORY.hex}") == []


async def test_only_the_earlier_lives_of_a_history_are_void(store: EngineStore, clock: FakeClock) -> None:
    journal = Journal(store, "tests", clock=clock)
    for life in range(3):
        await journal.commit(HISTORY, numbered(life), EPOCH)
        if life < 2:
            await journal.delete(HISTORY, NO_VC)
    expected = [GONE, DELETED, GONE, DELETED, EVENT]

    assert await kinds(journal) == expected
    assert await voids(journal) == [HISTORY]
    clock.advance(MONTH)
    assert (await Retention(journal).collect()).events == 2
    assert await voids(journal) == []
    assert await kinds(journal) == expected


@pytest.mark.parametrize("then", ["trim", "delete"])
async def test_tail_that_moves_on_leaves_one_row(store: EngineStore, clock: FakeClock, then: str) -> None:
    journal = Journal(store, "tests", clock=clock)
    retention = Retention(journal, {"all": HideAll()}, options=RetentionOptions(epoch_spacing=timedelta()))
    await journal.commit(HISTORY, numbered(1), EPOCH, type="all")
    await retention.trim()
    await retention.trim()
    assert await kinds(journal) == [GONE]
    await journal.commit(HISTORY, numbered(2), NO_VC)
    if then == "trim":
        await retention.trim()
        await retention.trim()
    else:
        await journal.delete(HISTORY, NO_VC)

    assert await voids(journal) == [HISTORY]
    assert (await kinds(journal))[:2] == [GONE, GONE]
    clock.advance(MONTH)
    assert (await retention.collect()).events == 2
    assert await voids(journal) == []
    assert (await kinds(journal))[:2] == [GONE, GONE]


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("write", [1, 2])
async def test_interrupted_removal_before_the_tail_goes_on(
    store: EngineStore, clock: FakeClock, write: int, *, carried_out: bool
) -> None:
    journal = Journal(store, "tests", clock=clock)
    await journal.commit(HISTORY, numbered(1), EPOCH, type="all")
    for _ in range(2):
        await Retention(journal, {"all": HideAll()}).trim()
    clock.advance(MONTH)
    faulty = FaultyStore(store)
    faulty.cut_off_at(write, carried_out=carried_out)
    with pytest.raises(CutOffError):
        await Retention(Journal(faulty, "tests", clock=clock)).collect()

    assert (await Retention(journal).collect()).failures == []

    assert await voids(journal) == []
    assert await rows(store, journal, "e/") == []
    assert await kinds(journal) == [GONE]


async def test_many_deletions_are_told_as_few_are(store: EngineStore) -> None:
    journal = Journal(store, "tests")
    histories = [uuid4() for _ in range(250)]
    await asyncio.gather(*(journal.commit(history, numbered(1), EPOCH) for history in histories))
    await asyncio.gather(*(journal.delete(history, NO_VC) for history in histories[:220]))
    await journal.commit(histories[0], numbered(2), EPOCH)
    await journal.feed.last_position()

    items = {(item.kind, item.history) for item in await journal.feed.read()}

    assert {history for kind, history in items if kind is GONE} == set(histories[:220])
    assert {history for kind, history in items if kind is DELETED} == set(histories[:220])
    assert {history for kind, history in items if kind is EVENT} == {*histories[220:], histories[0]}


async def test_recent_events_are_read_without_regard_to_old_deletions(
    store: EngineStore, clock: FakeClock
) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests", clock=clock)
    histories = [uuid4() for _ in range(220)]
    await asyncio.gather(*(journal.commit(history, numbered(1), EPOCH) for history in histories))
    await asyncio.gather(*(journal.delete(history, NO_VC) for history in histories))
    position = await journal.feed.last_position()
    clock.advance(timedelta(seconds=1))
    await journal.commit(HISTORY, numbered(2), EPOCH)
    await journal.feed.last_position()
    calls: Counter[str] = Counter()

    async def count(call: Call) -> None:
        calls[call.method] += 1

    faulty.before = count
    assert [item.kind for item in await journal.feed.read(position)] == [EVENT]
    assert calls["bulk_get"] == 1
