from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

import persistence
from hsm.testing import Call, FakeClock, FaultyStore
from persistence.errors import StoreClosedError, StoreUnavailableError
from persistence.features import require
from persistence.journal import NO_VC, Journal, JournalObserver, JournalOptions, Subscription
from persistence.store import Change, ChangeKind, EngineStore, Feature
from tests.support.histories import codes, numbered

HISTORY, OTHER = uuid4(), uuid4()
SOON = JournalOptions(poll_interval=timedelta(milliseconds=20))


class Unwatchable(FaultyStore):
    """A store without WATCH, whatever is behind."""

    @property
    def features(self) -> frozenset[Feature]:
        return super().features - {Feature.WATCH}


async def signalled(subscription: Subscription) -> frozenset[UUID]:
    async with asyncio.timeout(30):
        return await subscription.wait()


async def quiet(subscription: Subscription) -> bool:
    waiting = asyncio.ensure_future(subscription.wait())
    for _ in range(20):
        await asyncio.sleep(0)
    if waiting.done():
        return False
    waiting.cancel()
    return True


@pytest.fixture
def lone(store: EngineStore, clock: FakeClock) -> Journal:
    """A journal that hears of its own commits alone: no watch, and a poll for which the time never comes."""
    return Journal(Unwatchable(store), "tests", clock=clock)


async def test_commit_wakes_up_its_subscribers_and_no_others(lone: Journal) -> None:
    async with (
        lone.subscribe(HISTORY) as one,
        lone.subscribe(OTHER) as two,
        lone.subscribe() as all_,
    ):
        await lone.commit(HISTORY, numbered(1), NO_VC)

        assert await signalled(one) == {HISTORY}
        assert HISTORY in await signalled(all_)
        assert await quiet(two)


async def test_signals_that_come_before_they_are_taken_are_one(store: EngineStore, clock: FakeClock) -> None:
    dropped: list[int] = []

    class Observer(JournalObserver):
        def signal_dropped(self) -> None:
            dropped.append(1)

    journal = Journal(Unwatchable(store), "tests", clock=clock, observer=Observer())
    async with journal.subscribe(HISTORY) as subscription:
        for number in range(5):
            journal.notifier.post(HISTORY)
            assert len(dropped) == number

        assert await signalled(subscription) == {HISTORY}
        assert await quiet(subscription)


async def test_signal_while_reading_is_kept_for_the_next_wait(lone: Journal) -> None:
    async with lone.subscribe(HISTORY) as subscription:
        assert await codes(lone, HISTORY) == []
        await lone.commit(HISTORY, numbered(1), NO_VC)

        await signalled(subscription)

        assert await codes(lone, HISTORY) == [1]


async def test_subscriber_to_everything_learns_which_histories(lone: Journal) -> None:
    async with lone.subscribe() as subscription:
        lone.notifier.post(HISTORY)
        lone.notifier.post(OTHER)

        assert await signalled(subscription) == {HISTORY, OTHER}


async def test_too_many_histories_to_tell_are_any(lone: Journal) -> None:
    async with lone.subscribe() as subscription:
        for _ in range(5000):
            lone.notifier.post(uuid4())

        assert await signalled(subscription) == frozenset()


async def test_nothing_is_left_after_unsubscribing(lone: Journal) -> None:
    before = asyncio.all_tasks()
    async with lone.subscribe(HISTORY) as subscription, lone.subscribe():
        assert len(lone.notifier) == 2

    assert len(lone.notifier) == 0
    assert asyncio.all_tasks() - before == set()
    await lone.commit(HISTORY, numbered(1), NO_VC)
    assert await quiet(subscription)


async def test_commit_of_another_process_wakes_up(store: EngineStore) -> None:
    journal, other = Journal(store, "tests", options=SOON), Journal(store, "tests")
    async with journal.subscribe(HISTORY) as one, journal.subscribe() as all_:
        for number in range(3):
            await other.commit(HISTORY, numbered(number), NO_VC)
            while len(await codes(journal, HISTORY)) <= number:
                await signalled(one)
            await signalled(all_)


async def test_reader_that_subscribes_first_misses_nothing(store: EngineStore) -> None:
    journal, other = Journal(store, "tests", options=SOON), Journal(store, "tests")
    found: list[int] = []

    async def read() -> None:
        async with journal.subscribe(HISTORY) as subscription:
            while len(found) < 40:
                found[:] = await codes(journal, HISTORY)
                if len(found) < 40:
                    await signalled(subscription)

    async def write() -> None:
        for number in range(40):
            await other.commit(HISTORY, numbered(number), NO_VC)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(read())
        group.create_task(write())

    assert found == list(range(40))


async def test_poll_has_a_bound(store: EngineStore, clock: FakeClock) -> None:
    journal = Journal(
        Unwatchable(store), "tests", clock=clock, options=JournalOptions(poll_interval=timedelta(seconds=7))
    )
    other = Journal(store, "tests")
    async with journal.subscribe(HISTORY) as one, journal.subscribe() as all_:
        await clock.skip(timedelta(seconds=7))
        for subscription in (one, all_):
            await signalled(subscription)
        await other.commit(HISTORY, numbered(1), NO_VC)
        await clock.skip(timedelta(seconds=6))
        assert await quiet(one)

        await clock.skip(timedelta(seconds=1))

        assert await signalled(one) == {HISTORY}
        assert await signalled(all_) == frozenset()


async def test_poll_of_a_history_that_does_not_change_wakes_up_nobody(
    store: EngineStore, clock: FakeClock
) -> None:
    journal = Journal(Unwatchable(store), "tests", clock=clock)
    await journal.commit(HISTORY, numbered(1), NO_VC)
    async with journal.subscribe(HISTORY) as subscription:
        await clock.skip(timedelta(seconds=1))
        await signalled(subscription)  # whether something has changed before the first look is not known
        for _ in range(5):
            await clock.skip(timedelta(seconds=1))

        assert await quiet(subscription)


async def test_poll_goes_on_after_a_failure(store: EngineStore, clock: FakeClock) -> None:
    faulty = Unwatchable(store)
    journal = Journal(faulty, "tests", clock=clock)
    async with journal.subscribe(HISTORY) as subscription:

        async def fail(call: Call) -> None:
            if call.method == "bulk_get":
                faulty.before = None
                raise StoreUnavailableError("the line went dead")

        faulty.before = fail
        await clock.skip(timedelta(seconds=1))
        assert await signalled(subscription) == frozenset()
        await clock.skip(timedelta(seconds=1))

        assert await signalled(subscription) == {HISTORY}


async def test_closed_journal_still_commits_and_wakes_up_who_is_left(lone: Journal) -> None:
    async with lone.subscribe(HISTORY) as subscription:
        await lone.aclose()

        await lone.commit(HISTORY, numbered(1), NO_VC)

        assert await signalled(subscription) == {HISTORY}


@pytest.mark.parametrize("watching", [True, False])
async def test_whoever_waits_learns_that_the_store_was_closed(watching: bool, clock: FakeClock) -> None:
    async with persistence.connect("memory://closed") as opened:
        store = require(opened, EngineStore)
        journal = Journal(store if watching else Unwatchable(store), "tests", clock=clock)

        async def follow() -> None:
            async with contextlib.aclosing(journal.feed.follow()) as items:
                async for _ in items:
                    pass

        following = asyncio.create_task(follow())
        await clock.skip(timedelta(seconds=1))
        assert len(journal.notifier) == 1
        await store.aclose()
        await clock.skip(timedelta(seconds=1))
        with pytest.raises(StoreClosedError):
            async with asyncio.timeout(30):
                await following


class Breaking(FaultyStore):
    """A store whose watches break off, each with the next of the errors; the last one goes on."""

    def __init__(self, inner: EngineStore, errors: list[Exception]) -> None:
        super().__init__(inner)
        self.errors = errors

    @property
    def features(self) -> frozenset[Feature]:
        return super().features | {Feature.WATCH}

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        assert prefix == "h/"
        assert partition
        if self.errors and isinstance(self.errors[0], StoreClosedError):
            raise self.errors[0]
        return self._changes()

    async def _changes(self) -> AsyncIterator[Change]:
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.Event().wait()
        yield Change(ChangeKind.RESYNC)


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("the line went dead"), ZeroDivisionError()], ids=type
)
async def test_watch_that_breaks_off_is_begun_again(
    store: EngineStore, clock: FakeClock, error: Exception
) -> None:
    broken = Breaking(store, [error, error])
    journal = Journal(broken, "tests", clock=clock)
    async with journal.subscribe(HISTORY) as subscription:
        for _ in range(2):
            await clock.skip(timedelta(seconds=1))
            assert await signalled(subscription) == frozenset()

        await clock.skip(timedelta(seconds=1))
        assert broken.errors == []


async def test_whoever_waits_learns_that_the_store_was_closed_while_it_could_not_be_watched(
    store: EngineStore, clock: FakeClock
) -> None:
    journal = Journal(
        Breaking(store, [StoreUnavailableError("down"), StoreClosedError("closed")]), "tests", clock=clock
    )
    async with journal.subscribe(HISTORY) as subscription:
        await clock.skip(timedelta(seconds=1))

        assert await signalled(subscription) == frozenset()
