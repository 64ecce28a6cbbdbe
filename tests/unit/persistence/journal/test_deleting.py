from __future__ import annotations

from uuid import uuid4

import pytest

from hsm.testing import Call, FaultyStore
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    Expectation,
    FeedKind,
    Journal,
    RetryNoVCError,
    VersionConflictError,
)
from persistence.store import EngineStore
from tests.support.histories import codes, drain, numbered

HISTORY = uuid4()


async def test_deleted_history_is_empty(journal: Journal) -> None:
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version

    assert await journal.delete(HISTORY, version)

    assert await journal.head(HISTORY) == EPOCH
    assert await drain(journal.find(HISTORY)) == []


@pytest.mark.parametrize("expected", [NO_VC, RETRY_NO_VC, EPOCH])
async def test_deleting_what_is_not_there_is_no_error(journal: Journal, expected: Expectation) -> None:
    assert not await journal.delete(HISTORY, expected)
    await journal.commit(HISTORY, numbered(1), EPOCH)
    await journal.delete(HISTORY, NO_VC)

    assert not await journal.delete(HISTORY, expected)


async def test_deleting_again_with_the_old_version_is_no_error(journal: Journal) -> None:
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    await journal.delete(HISTORY, version)

    assert not await journal.delete(HISTORY, version)


async def test_deleting_another_version_is_a_conflict(journal: Journal) -> None:
    first = await journal.commit(HISTORY, numbered(1), EPOCH)
    second = await journal.commit(HISTORY, numbered(2), first.version)

    for version in (EPOCH, first.version):
        with pytest.raises(VersionConflictError) as caught:
            await journal.delete(HISTORY, version)
        assert (caught.value.stored, caught.value.expected) == (second.version, version)

    assert await codes(journal, HISTORY) == [1, 2]


class Intruder:
    def __init__(self, store: EngineStore, times: int) -> None:
        self.journal = Journal(store, "tests")
        self.left = times

    async def __call__(self, call: Call) -> None:
        if call.method == "multi" and self.left:
            self.left -= 1
            await self.journal.commit(HISTORY, numbered(9), NO_VC)


async def test_commit_during_a_deletion_is_a_conflict_that_is_retried(store: EngineStore) -> None:
    await Journal(store, "tests").commit(HISTORY, numbered(1), EPOCH)
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")

    faulty.before = Intruder(store, 1)
    with pytest.raises(VersionConflictError):
        await journal.delete(HISTORY, NO_VC)
    faulty.before = Intruder(store, 6)
    with pytest.raises(RetryNoVCError):
        await journal.delete(HISTORY, RETRY_NO_VC)
    faulty.before = Intruder(store, 5)
    assert await journal.delete(HISTORY, RETRY_NO_VC)


async def test_history_created_again_goes_on_counting_and_shows_nothing_old(journal: Journal) -> None:
    old = await journal.commit(HISTORY, numbered(1, 2), EPOCH)
    await journal.delete(HISTORY, NO_VC)

    await journal.commit(HISTORY, numbered(3, 4), EPOCH)
    events = await drain(journal.find(HISTORY))

    assert await codes(journal, HISTORY) == [3, 4]
    assert [event.serial for event in events] == [3, 4]
    assert events[0].parent == EPOCH
    assert await drain(journal.find(HISTORY, reverse=True)) == events[::-1]
    with pytest.raises(VersionConflictError):
        await journal.commit(HISTORY, numbered(9), old.version)


async def test_feed_flags_what_was_deleted(journal: Journal) -> None:
    await journal.commit(HISTORY, numbered(1), EPOCH)
    await journal.feed.last_position()
    await journal.delete(HISTORY, NO_VC)
    await journal.commit(HISTORY, numbered(2), EPOCH)
    await journal.feed.last_position()

    items = await journal.feed.read()

    assert [item.kind for item in items] == [FeedKind.GONE, FeedKind.DELETED, FeedKind.EVENT]
    assert items[0].event is None
    assert items[2].event is not None


async def test_events_of_the_life_before_cannot_be_committed_again(journal: Journal) -> None:
    old = await journal.commit(HISTORY, numbered(1), EPOCH)
    await journal.delete(HISTORY, NO_VC)
    await journal.commit(HISTORY, numbered(2), EPOCH)

    with pytest.raises(VersionConflictError):
        await journal.commit(HISTORY, [old.events[0].again()], EPOCH)

    assert await codes(journal, HISTORY) == [2]
