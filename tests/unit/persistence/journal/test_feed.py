from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from hsm.testing import Call, FakeClock, FaultyStore
from persistence import ETagMismatchError, StoreCorruptError
from persistence.journal import (
    EPOCH,
    NO_VC,
    CorruptHistoryError,
    EventId,
    FeedItem,
    FeedKind,
    Journal,
    JournalOptions,
    PositionTrimmedError,
)
from persistence.store import DeleteRequest, EngineStore, SetRequest
from tests.support.histories import numbered, rows

HISTORY, OTHER = uuid4(), uuid4()


async def everything(journal: Journal, limit: int = 500) -> list[FeedItem]:
    items: list[FeedItem] = []
    while page := await journal.feed.read(items[-1].position if items else 0, limit=limit):
        assert len(page) <= limit
        items += page
    return items


def positions(items: list[FeedItem]) -> list[int]:
    return [item.position for item in items]


async def test_feed_of_nothing_is_empty(journal: Journal) -> None:
    assert await journal.feed.read() == []
    assert await journal.feed.last_position() == 0
    assert await rows(journal.store, journal) == []


async def test_feed_has_all_histories_in_the_order_of_commits(journal: Journal) -> None:
    one = await journal.commit(OTHER, numbered(1, 2), EPOCH)
    two = await journal.commit(HISTORY, numbered(3), EPOCH)
    three = await journal.commit(OTHER, numbered(4), one.version)

    items = await everything(journal)

    assert [item.event for item in items] == [*one.events, *two.events, *three.events]
    assert positions(items) == [1, 2, 3, 4]
    assert [item.event_id for item in items] == [item.event.id for item in items if item.event]
    assert await journal.feed.last_position() == 4


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_of_any_size_cover_the_feed(journal: Journal, limit: int) -> None:
    for number in range(4):
        await journal.commit(uuid4(), numbered(*range(number)), NO_VC)
    await journal.feed.last_position()
    await journal.commit(uuid4(), numbered(1, 2), NO_VC)

    assert positions(await everything(journal, limit)) == list(range(1, 9))
    assert await journal.feed.read(limit=0) == []


async def test_positions_once_given_do_not_change(journal: Journal) -> None:
    histories = [uuid4() for _ in range(4)]
    seen: list[FeedItem] = []
    for number in range(12):
        await journal.commit(histories[number % 4], numbered(number), NO_VC)
        if number % 3 == 0:
            await journal.feed.last_position()
            items = await everything(journal)
            assert items[: len(seen)] == seen
            seen = items


async def test_commit_with_an_older_stamp_comes_later_and_is_not_missed(store: EngineStore) -> None:
    """A writer that was held up between its stamp and its commit."""
    faulty = FaultyStore(store)
    slow, quick = Journal(faulty, "tests"), Journal(store, "tests")

    async def overtake(call: Call) -> None:
        if call.method == "multi":
            faulty.before = None
            await quick.commit(OTHER, numbered(2), EPOCH)
            assert await quick.feed.last_position() == 1

    faulty.before = overtake
    await slow.commit(HISTORY, numbered(1), EPOCH)

    assert await quick.feed.last_position() == 2
    assert [item.history for item in await everything(quick)] == [OTHER, HISTORY]


async def test_what_was_seen_stands_before_what_was_written_after(store: EngineStore) -> None:
    """Many journals with clocks that differ: whoever has read a head writes behind it."""
    chance = random.Random(1)

    class Skewed:
        def __init__(self, skew: timedelta) -> None:
            self._skew = skew // timedelta(microseconds=1) * 1000

        def time_ns(self) -> int:
            return 1_900_000_000_000_000_000 + self._skew

        def call_later(self, delay_ns: int, callback: object) -> asyncio.TimerHandle:
            raise NotImplementedError

    journals = [
        Journal(store, "tests", clock=Skewed(timedelta(seconds=chance.uniform(-20, 20)))) for _ in range(5)
    ]
    order: list[UUID] = []
    last: UUID | None = None
    for _ in range(40):
        journal = chance.choice(journals)
        if last is not None:
            await journal.head(last)
        last = uuid4()
        await journal.commit(last, numbered(1), EPOCH)
        order.append(last)

    assert await journals[0].feed.last_position() == 40
    assert [item.history for item in await everything(journals[0])] == order


async def test_several_sequencers_give_every_position_once(store: EngineStore) -> None:
    journals = [Journal(store, "tests") for _ in range(4)]
    histories = [uuid4() for _ in range(6)]
    views: list[list[FeedItem]] = [[] for _ in journals]
    done = asyncio.Event()

    async def write(journal: Journal, history: UUID) -> None:
        version = EPOCH
        for number in range(15):
            version = (await journal.commit(history, numbered(number), version)).version

    async def read(journal: Journal, view: list[FeedItem]) -> None:
        while not done.is_set() or await journal.feed.last_position() > len(view):
            view += await journal.feed.read(len(view))
            await asyncio.sleep(0)

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        readers = [group.create_task(read(*each)) for each in zip(journals, views, strict=True)]
        writers = [write(journals[number % 4], history) for number, history in enumerate(histories)]
        await asyncio.gather(*writers)
        done.set()
        await asyncio.gather(*readers)

    assert positions(views[0]) == list(range(1, 91))
    for view in views[1:]:
        assert view == views[0]
    for history in histories:
        own = [item.event for item in views[0] if item.history == history]
        assert [event.serial for event in own if event] == list(range(1, 16))


async def test_snapshot_of_the_queue_is_taken_again_until_it_stands_still(store: EngineStore) -> None:
    """Between two scans of the queue a commit appears in front of the others."""
    early, late = FakeClock(), FakeClock()
    late.advance(timedelta(seconds=1))
    faulty, held = FaultyStore(store), FaultyStore(store)
    journal = Journal(faulty, "tests", clock=late)
    other, holding = Journal(store, "tests", clock=late), Journal(held, "tests", clock=early)

    async def hold(call: Call) -> None:
        if call.method == "multi":
            held.before = None
            await other.commit(HISTORY, numbered(1), EPOCH)
            await other.commit(uuid4(), numbered(2), EPOCH)
            scans = 0

            async def between(call: Call) -> None:
                nonlocal scans
                if call.method == "scan":
                    scans += 1
                    if scans == 2:
                        faulty.before = None
                        release.set()
                        await committed.wait()

            faulty.before = between

            async def sequence() -> None:
                await journal.feed.last_position()

            tasks.append(asyncio.ensure_future(sequence()))
            await release.wait()

    release, committed = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Future[None]] = []
    held.before = hold
    await holding.commit(OTHER, numbered(3), EPOCH)
    committed.set()
    async with asyncio.timeout(30):
        await tasks[0]

    items = await everything(journal)
    assert items[0].history == OTHER
    assert positions(items) == [1, 2, 3]


async def test_feed_is_followed_as_it_grows(store: EngineStore) -> None:
    journal = Journal(store, "tests", options=JournalOptions(poll_interval=timedelta(milliseconds=20)))
    other = Journal(store, "tests")
    await other.commit(HISTORY, numbered(0), NO_VC)
    seen: list[int] = []
    async with asyncio.timeout(60), aclosing(journal.feed.follow()) as items:
        async for item in items:
            assert item.event is not None
            seen.append(item.event.message().status_code)
            if len(seen) == 10:
                break
            await other.commit(HISTORY, numbered(len(seen)), NO_VC)

    assert seen == list(range(10))
    assert len(journal.notifier) == 0


async def test_follower_goes_on_behind_its_position(journal: Journal) -> None:
    await journal.commit(HISTORY, numbered(1, 2, 3), NO_VC)
    async with asyncio.timeout(60), aclosing(journal.feed.follow(2)) as items:
        async for item in items:
            assert item.position == 3
            break


async def test_lost_race_for_positions_is_no_error(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    await journal.commit(HISTORY, numbered(1), EPOCH)

    async def race(call: Call) -> None:
        if call.method == "multi":
            faulty.before = None
            other = Journal(store, "tests")
            await other.commit(OTHER, numbered(2), EPOCH)
            assert await other.feed.last_position() == 2

    faulty.before = race

    assert await journal.feed.last_position() == 2
    items = await everything(journal)
    assert positions(items) == [1, 2]
    # Neither had seen the other: they stand in either order.
    assert {item.history for item in items} == {HISTORY, OTHER}


async def test_big_commits_and_many_commits_fit_into_the_limits(journal: Journal) -> None:
    most = min(journal.store.limits.operations - 2, 900)
    await journal.commit(HISTORY, numbered(*range(most)), EPOCH)
    await asyncio.gather(*(journal.commit(uuid4(), numbered(1), EPOCH) for _ in range(600)))

    assert positions(await everything(journal)) == list(range(1, most + 601))
    assert await rows(journal.store, journal, "o/") == []


async def test_trimmed_positions_are_told_and_the_rest_stays(journal: Journal) -> None:
    for number in range(6):
        await journal.commit(HISTORY, numbered(number), NO_VC)
        await journal.feed.last_position()

    assert await journal.feed.trim(4) == 4
    assert await journal.feed.trim(2) == 4

    with pytest.raises(PositionTrimmedError) as caught:
        await journal.feed.read(3)
    assert (caught.value.position, caught.value.trimmed) == (3, 4)
    assert positions(list(await journal.feed.read(4))) == [5, 6]
    await journal.commit(HISTORY, numbered(7), NO_VC)
    assert await journal.feed.last_position() == 7
    assert await journal.feed.trim(100) == 7
    assert await journal.feed.read(7) == []
    with pytest.raises(PositionTrimmedError):
        await journal.feed.read()


async def test_trim_leaves_the_rest_of_a_stretch(journal: Journal) -> None:
    await journal.commit(HISTORY, numbered(1, 2, 3), NO_VC)
    await journal.feed.last_position()

    assert await journal.feed.trim(2) == 0

    assert positions(await everything(journal)) == [1, 2, 3]


async def test_missing_event_of_a_living_history_is_told(journal: Journal) -> None:
    version: EventId = (await journal.commit(HISTORY, numbered(1), NO_VC)).version
    await journal.feed.last_position()
    key = f"e/{HISTORY.hex}/{version.hex()}"
    await journal.store.delete(DeleteRequest(key=key, partition=journal.partition))

    with pytest.raises(CorruptHistoryError) as caught:
        await journal.feed.read()

    assert caught.value.event_id == version


async def test_what_stands_before_a_damaged_event_is_read(journal: Journal) -> None:
    versions = [(await journal.commit(HISTORY, numbered(number), NO_VC)).version for number in range(3)]
    key = f"e/{HISTORY.hex}/{versions[1].hex()}"
    await journal.store.set(SetRequest(key=key, value=b"\xff\xff", partition=journal.partition))

    assert positions([*await journal.feed.read()]) == [1]
    with pytest.raises(CorruptHistoryError):
        await journal.feed.read(1)
    assert positions([*await journal.feed.read(2)]) == [3]


async def test_missing_stretch_is_told(journal: Journal) -> None:
    for number in range(3):
        await journal.commit(HISTORY, numbered(number), NO_VC)
        await journal.feed.last_position()
    (first, second, _) = await rows(journal.store, journal, "g/")
    await journal.store.delete(DeleteRequest(key=second.key, partition=journal.partition))

    with pytest.raises(StoreCorruptError, match="position 2"):
        await everything(journal)
    await journal.store.set(SetRequest(key=first.key, value=b"\xff\xff", partition=journal.partition))
    with pytest.raises(StoreCorruptError, match="damaged"):
        await journal.feed.read()


async def test_events_trimmed_from_a_history_are_flagged(journal: Journal) -> None:
    await journal.commit(HISTORY, numbered(1), NO_VC)
    await journal.delete(HISTORY, NO_VC)
    await journal.feed.last_position()

    assert [item.kind for item in await everything(journal)] == [FeedKind.GONE, FeedKind.DELETED]


async def test_lost_races_are_run_again(store: EngineStore) -> None:

    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    await journal.commit(HISTORY, numbered(1), EPOCH)
    refusals = 0

    async def refuse(call: Call) -> None:
        nonlocal refusals
        if call.method == "multi" and refusals < 3:
            refusals += 1
            raise ETagMismatchError("lost")

    faulty.before = refuse

    assert await journal.feed.last_position() == 1
    assert refusals == 3
