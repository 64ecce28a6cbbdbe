from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import attrs
import pytest

from hsm.testing import Call, FakeClock, FaultyStore
from persistence import CommitOutcomeUnknownError
from persistence.journal import (
    EPOCH,
    NO_VC,
    Event,
    EventId,
    FeedKind,
    Journal,
    JournalObserver,
    JournalOptions,
    Retention,
    RetentionOptions,
    TrimmedError,
)
from persistence.store import EngineStore, SetRequest
from tests.support.histories import codes, drain, numbered, rows

HISTORY = uuid4()
BEGIN = 100
MONTH = timedelta(days=30)
MOMENT = timedelta(seconds=1)


@attrs.frozen
class BeforeSnapshots:
    """An index policy: an epoch before each event of code 100; the tail follows a month later."""

    fails_on: int = -1

    def is_new_epoch(self, last: Event, following: Event | None, now: datetime) -> bool:
        assert now.tzinfo is not None
        if last.message().status_code == self.fails_on:
            raise ZeroDivisionError
        return following is not None and following.message().status_code == BEGIN

    def is_new_tail(self, epoch: EventId, set_at: datetime, now: datetime) -> bool:
        assert epoch > EPOCH
        return now - set_at > MONTH


class HideAll:
    def is_new_epoch(self, last: Event, following: Event | None, now: datetime) -> bool:
        del last, now
        return following is None

    def is_new_tail(self, epoch: EventId, set_at: datetime, now: datetime) -> bool:
        del epoch, set_at, now
        return True


@pytest.fixture
def journal(store: EngineStore, clock: FakeClock) -> Journal:
    return Journal(store, "tests", clock=clock, options=JournalOptions(hash_chain=True))


def retention(journal: Journal, fails_on: int = -1) -> Retention:
    return Retention(journal, {"index": BeforeSnapshots(fails_on), "all": HideAll()})


async def filled(
    journal: Journal, *numbers: int, history: UUID = HISTORY, type_: str = "index"
) -> list[Event]:
    return list((await journal.commit(history, numbered(*numbers), NO_VC, type=type_)).events)


async def kept(journal: Journal, history: UUID = HISTORY) -> int:
    return len(await rows(journal.store, journal, f"e/{history.hex}"))


async def test_reading_begins_after_the_last_epoch(journal: Journal) -> None:
    events = await filled(journal, 1, 2, BEGIN, 3, BEGIN, 4)

    report = await retention(journal).trim()

    assert (report.histories, report.epochs, report.tails, report.failures) == (1, 1, 0, [])
    assert await codes(journal, HISTORY) == [BEGIN, 4]
    assert await drain(journal.find(HISTORY, reverse=True)) == events[:3:-1]
    assert await kept(journal) == 6


async def test_hidden_events_stay_readable_by_id(journal: Journal) -> None:
    events = await filled(journal, 1, 2, 3, BEGIN, 4)
    await retention(journal).trim()

    assert await codes(journal, HISTORY, events[0].id) == [2, 3, BEGIN, 4]
    assert await codes(journal, HISTORY, events[3].id) == [4]


async def test_nothing_happens_without_a_policy_or_an_occasion(journal: Journal) -> None:
    await filled(journal, 1, BEGIN, 2, type_="other")
    await filled(journal, 1, 2, history=uuid4())

    report = await retention(journal).trim()

    assert (report.histories, report.epochs) == (1, 0)
    assert await codes(journal, HISTORY) == [1, BEGIN, 2]


async def test_next_epoch_waits_thirty_days(journal: Journal, clock: FakeClock) -> None:
    await filled(journal, 1, BEGIN, 2)
    await retention(journal).trim()
    await filled(journal, BEGIN, 3)

    clock.advance(MONTH - MOMENT)
    assert (await retention(journal).trim()).epochs == 0
    assert await codes(journal, HISTORY) == [BEGIN, 2, BEGIN, 3]
    clock.advance(MOMENT)
    assert (await retention(journal).trim()).epochs == 1
    assert await codes(journal, HISTORY) == [BEGIN, 3]


async def test_epoch_becomes_the_tail_in_a_later_run_alone(journal: Journal, clock: FakeClock) -> None:
    events = await filled(journal, 1, 2, 3, type_="all")

    first = await retention(journal).trim()
    assert (first.epochs, first.tails) == (1, 0)
    assert await codes(journal, HISTORY, events[0].id) == [2, 3]
    clock.advance(MOMENT)
    second = await retention(journal).trim()
    assert (second.epochs, second.tails) == (0, 1)

    with pytest.raises(TrimmedError) as caught:
        await codes(journal, HISTORY, events[0].id)
    assert (caught.value.event_id, caught.value.epoch) == (events[0].id, events[2].id)
    assert await codes(journal, HISTORY, events[2].id) == []


async def test_events_before_the_tail_are_removed_after_their_grace(
    journal: Journal, clock: FakeClock
) -> None:
    events = await filled(journal, 1, 2, BEGIN, 3)
    await retention(journal).trim()
    clock.advance(MONTH)
    assert (await retention(journal).trim()).tails == 0
    clock.advance(MOMENT)
    assert (await retention(journal).trim()).tails == 1

    assert (await retention(journal).collect()).events == 0
    clock.advance(timedelta(hours=1))
    assert (await retention(journal).collect()).events == 2

    assert await kept(journal) == 2
    assert await codes(journal, HISTORY) == [BEGIN, 3]
    assert await codes(journal, HISTORY, events[1].id) == [BEGIN, 3]
    with pytest.raises(TrimmedError):
        await codes(journal, HISTORY, events[0].id)
    assert (await retention(journal).collect()).events == 0
    await filled(journal, 4)
    assert await codes(journal, HISTORY) == [BEGIN, 3, 4]


async def test_history_that_is_hidden_as_a_whole_goes_on(journal: Journal) -> None:
    events = await filled(journal, 1, 2, type_="all")
    await retention(journal).trim()

    assert await codes(journal, HISTORY) == []
    assert await drain(journal.find(HISTORY, reverse=True)) == []
    assert await journal.head(HISTORY) == events[-1].id
    await journal.commit(HISTORY, numbered(3), events[-1].id)
    assert await codes(journal, HISTORY) == [3]


async def test_feed_flags_what_was_trimmed(journal: Journal, clock: FakeClock) -> None:
    await filled(journal, 1, 2, BEGIN, 3)
    await retention(journal).trim()
    clock.advance(2 * MONTH)
    await retention(journal).trim()
    clock.advance(MONTH)
    await retention(journal).collect()

    assert [item.kind for item in await journal.feed.read()] == [FeedKind.GONE] * 2 + [FeedKind.EVENT] * 2


async def test_deletion_has_phases(journal: Journal, clock: FakeClock) -> None:
    events = await filled(journal, 1, 2)
    await journal.snapshots.save(HISTORY, events[1].id, b"", version=1)
    await journal.delete(HISTORY, NO_VC)

    clock.advance(timedelta(days=15) - MOMENT)
    assert (await retention(journal).collect()).events == 0
    assert await kept(journal) == 2
    clock.advance(MOMENT)
    report = await retention(journal).collect()
    assert (report.events, report.emptied, report.forgotten) == (2, 1, 0)
    assert await rows(journal.store, journal, "s/") == []
    clock.advance(timedelta(days=15) - MOMENT)
    assert (await retention(journal).collect()).forgotten == 0
    clock.advance(MOMENT)
    assert (await retention(journal).collect()).forgotten == 1

    assert await rows(journal.store, journal, "h/") == []
    assert (await retention(journal).collect()).histories == 0
    assert [item.kind for item in await journal.feed.read()] == [FeedKind.GONE] * 2 + [FeedKind.DELETED]


@pytest.mark.parametrize("days", [0, 15, 30])
async def test_history_created_again_in_any_phase_keeps_its_new_events(
    journal: Journal, clock: FakeClock, days: int
) -> None:
    old = await filled(journal, 1, 2)
    await journal.delete(HISTORY, NO_VC)
    clock.advance(timedelta(days=15) if days else timedelta())
    await retention(journal).collect()
    if days == 30:
        clock.advance(timedelta(days=15))
        await retention(journal).collect()
    new = await filled(journal, 3, 4)
    assert new[0].serial == (1 if days == 30 else 3)
    assert new[0].id > old[-1].id

    for _ in range(3):
        clock.advance(MONTH)
        await retention(journal).trim()
        await retention(journal).collect()

    assert await codes(journal, HISTORY) == [3, 4]
    assert await kept(journal) == 2
    kinds = [item.kind for item in await journal.feed.read()]
    assert kinds == [FeedKind.GONE, FeedKind.GONE, FeedKind.DELETED, FeedKind.EVENT, FeedKind.EVENT]


async def test_commit_in_the_middle_of_a_collection_is_kept(store: EngineStore, clock: FakeClock) -> None:
    """Created again between the look at the row and the removal of what it held."""
    faulty = FaultyStore(store)
    journal, other = Journal(faulty, "tests", clock=clock), Journal(store, "tests", clock=clock)
    await filled(other, 1, 2)
    await other.delete(HISTORY, NO_VC)
    clock.advance(timedelta(days=20))
    calls = 0

    async def intrude(call: Call) -> None:
        nonlocal calls
        calls += call.method == "scan"
        if calls == 2:
            faulty.before = None
            await other.commit(HISTORY, numbered(3), EPOCH)

    faulty.before = intrude
    report = await retention(journal).collect()

    assert (report.events, report.emptied, report.failures) == (2, 0, [])
    assert await codes(other, HISTORY) == [3]
    assert (await retention(journal).collect()).failures == []
    assert await codes(other, HISTORY) == [3]


async def test_commit_in_the_middle_of_a_trim_wins(store: EngineStore, clock: FakeClock) -> None:
    faulty = FaultyStore(store)
    journal, other = Journal(faulty, "tests", clock=clock), Journal(store, "tests", clock=clock)
    await filled(other, 1, BEGIN, 2)

    async def intrude(call: Call) -> None:
        if call.method == "multi":
            faulty.before = None
            await other.commit(HISTORY, numbered(3), NO_VC)

    faulty.before = intrude
    report = await retention(journal).trim()

    assert (report.epochs, report.failures) == (0, [])
    assert await codes(other, HISTORY) == [1, BEGIN, 2, 3]
    assert (await retention(journal).trim()).epochs == 1


async def test_commit_goes_on_over_a_trim(journal: Journal) -> None:
    """The row of a history changes with its epoch, and its version does not: that is no conflict."""
    events = await filled(journal, 1, BEGIN, 2)
    await Retention(Journal(journal.store, "tests"), {"index": BeforeSnapshots()}).trim()

    await journal.commit(HISTORY, numbered(3), events[-1].id)

    assert await codes(journal, HISTORY) == [BEGIN, 2, 3]


async def test_history_that_fails_does_not_stop_the_others(
    store: EngineStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    failed: list[tuple[UUID, Exception]] = []

    class Observer(JournalObserver):
        def collection_failed(self, history: UUID, error: Exception) -> None:
            failed.append((history, error))

    journal = Journal(store, "tests", clock=clock, observer=Observer())
    histories = sorted(uuid4() for _ in range(5))
    for number, history in enumerate(histories):
        await filled(journal, number, BEGIN, history=history)
    key = f"h/{histories[3].hex}"
    await store.set(SetRequest(key=key, value=b"\xff\xff", partition=journal.partition))

    report = await retention(journal, fails_on=1).trim()
    await retention(journal).collect()

    assert [history for history, _ in report.failures] == [histories[1], histories[3]]
    assert isinstance(report.failures[0][1], ZeroDivisionError)
    assert report.epochs == 3
    assert [history for history, _ in failed] == [histories[1], histories[3], histories[3]]
    assert "retention of history" in caplog.text


async def test_row_of_no_history_does_not_stop_a_run(
    journal: Journal, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(journal, 1)
    await journal.delete(HISTORY, NO_VC)
    await journal.store.set(SetRequest(key="h/0", value=b"", partition=journal.partition))
    clock.advance(MONTH)

    assert (await retention(journal).collect()).emptied == 1
    assert "'h/0'" in caplog.text


async def test_many_histories_are_gone_through_in_batches(journal: Journal, clock: FakeClock) -> None:
    histories = [uuid4() for _ in range(7)]
    for history in histories:
        await filled(journal, 1, 2, 3, 4, history=history)
        await journal.delete(history, NO_VC)
    clock.advance(MONTH)
    options = RetentionOptions(batch=3)

    report = await Retention(journal, options=options).collect()

    assert (report.histories, report.events, report.emptied) == (7, 28, 7)
    assert await rows(journal.store, journal, "e/") == []


@pytest.mark.parametrize("write", [1, 2, 3])
@pytest.mark.parametrize("carried_out", [True, False])
async def test_interrupted_collection_goes_on(
    store: EngineStore, clock: FakeClock, write: int, *, carried_out: bool
) -> None:
    journal = Journal(store, "tests", clock=clock)
    await filled(journal, 1, 2)
    await journal.delete(HISTORY, NO_VC)
    faulty = FaultyStore(store)

    async def lose(call: Call) -> None:
        if call.write == write:
            raise CommitOutcomeUnknownError("the line went dead")

    setattr(faulty, "after" if carried_out else "before", lose)
    for _ in range(3):
        clock.advance(MONTH)
        await retention(Journal(faulty, "tests", clock=clock)).collect()

    await retention(journal).collect()

    assert await rows(journal.store, journal, "e/") == []
    assert await rows(journal.store, journal, "h/") == []


async def test_feed_is_kept_for_a_while_also_if_nobody_reads_it(store: EngineStore, clock: FakeClock) -> None:
    collected: list[tuple[str, int]] = []

    class Observer(JournalObserver):
        def collected(self, kind: str, rows: int) -> None:
            collected.append((kind, rows))

    journal = Journal(store, "tests", clock=clock, observer=Observer())
    retention = Retention(journal, options=RetentionOptions(feed_kept=MONTH))
    for number in range(3):
        await journal.commit(HISTORY, numbered(number), NO_VC)
    assert len(await rows(store, journal, "o/")) == 3
    assert (await retention.collect()).positions == 0
    assert len(await rows(store, journal, "o/")) == 0
    clock.advance(MONTH / 2)
    await journal.commit(HISTORY, numbered(3), NO_VC)
    await retention.collect()
    clock.advance(MONTH / 2 + MOMENT)

    assert (await retention.collect()).positions == 3
    assert [item.position for item in await journal.feed.read(3)] == [4]
    assert (await retention.collect()).positions == 0
    clock.advance(MONTH)
    assert (await retention.collect()).positions == 1
    assert await rows(store, journal, "g/") == []
    assert ("feed", 3) in collected
    await journal.commit(HISTORY, numbered(4), NO_VC)
    assert [item.position for item in await journal.feed.read(4)] == [5]
