"""Commits whose outcome is unknown, and crashes before and after each write."""

from __future__ import annotations

from uuid import uuid4

import pytest

from hsm.testing import Call, CutOffError, FaultyStore
from persistence import CommitOutcomeUnknownError
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    EventCommitUnknownError,
    EventMismatchError,
    FeedKind,
    Journal,
    NewEvent,
    VersionConflictError,
)
from persistence.store import EngineStore
from tests.support.histories import codes, numbered

HISTORY = uuid4()


class Losing:
    """Loses the answer of writes: after they were carried out, or before."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def __call__(self, call: Call) -> None:
        if call.method == "multi" and self.left:
            self.left -= 1
            raise CommitOutcomeUnknownError("the line went dead")


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("losses", [1, 2])
async def test_commit_of_unknown_outcome_is_repeated_once_only(
    store: EngineStore, losses: int, *, carried_out: bool
) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    setattr(faulty, "after" if carried_out else "before", Losing(losses))

    committed = await journal.commit(HISTORY, numbered(2, 3), version)
    await journal.commit(HISTORY, numbered(4), committed.version)

    assert await codes(journal, HISTORY) == [1, 2, 3, 4]
    assert [item.position for item in await journal.feed.read()] == [1, 2, 3, 4]


@pytest.mark.parametrize("carried_out", [True, False])
async def test_events_of_unknown_outcome_can_be_committed_again(
    store: EngineStore, *, carried_out: bool
) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    setattr(faulty, "after" if carried_out else "before", Losing(1 if carried_out else 3))
    if carried_out:

        async def refuse(call: Call) -> None:
            if call.method == "multi" and call.write > 1:
                raise CommitOutcomeUnknownError("and dead it stays")

        faulty.before = refuse

    with pytest.raises(EventCommitUnknownError) as caught:
        await journal.commit(HISTORY, numbered(1, 2), EPOCH)

    assert isinstance(caught.value, CommitOutcomeUnknownError)
    faulty.before = faulty.after = None
    again = [event.again() for event in caught.value.events]
    committed = await journal.commit(HISTORY, again, EPOCH)
    assert committed.events == caught.value.events
    assert await codes(journal, HISTORY) == [1, 2]


async def test_conflict_after_an_unknown_outcome_is_a_conflict(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    faulty.before = Losing(1)

    async def intrude(call: Call) -> None:
        if call.method == "multi" and call.write == 3:
            faulty.before = None
            await Journal(store, "tests").commit(HISTORY, numbered(9), NO_VC)

    losing = faulty.before

    async def both(call: Call) -> None:
        await intrude(call)
        await losing(call)

    faulty.before = both
    with pytest.raises(VersionConflictError):
        await journal.commit(HISTORY, numbered(2), version)

    assert await codes(journal, HISTORY) == [1, 9]


async def test_event_of_somebody_else_is_not_taken_for_ours_after_an_unknown_outcome(
    store: EngineStore,
) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    (event,) = numbered(2)
    (theirs,) = numbered(9)
    id_ = journal.ids.new()

    async def lose_to_somebody(call: Call) -> None:
        if call.method == "multi":
            faulty.before = None
            await Journal(store, "tests").commit(HISTORY, [NewEvent(theirs.payload, id_)], NO_VC)
            raise CommitOutcomeUnknownError("the line went dead")

    faulty.before = lose_to_somebody
    with pytest.raises(EventMismatchError):
        await journal.commit(HISTORY, [NewEvent(event.payload, id_)], NO_VC)

    assert await codes(journal, HISTORY) == [9]


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("write", [1, 2, 3, 4, 5])
async def test_crash_at_any_write_leaves_whole_commits_and_a_feed_of_them(
    store: EngineStore, write: int, *, carried_out: bool
) -> None:
    """Two commits, a move into the feed, a deletion, a move: whichever is the last, a retry completes them."""
    first, second = uuid4(), uuid4()

    async def story(journal: Journal) -> None:
        if await journal.head(first) == EPOCH and not await deleted(journal):
            await journal.commit(first, numbered(1, 2), EPOCH)
        if await journal.head(second) == EPOCH:
            await journal.commit(second, numbered(3), EPOCH)
        await journal.feed.last_position()
        await journal.delete(first, RETRY_NO_VC)
        await journal.feed.last_position()

    async def deleted(journal: Journal) -> bool:
        await journal.feed.last_position()
        return any(item.kind is FeedKind.DELETED for item in await journal.feed.read())

    faulty = FaultyStore(store)
    faulty.cut_off_at(write, carried_out=carried_out)
    with pytest.raises(CutOffError):
        await story(Journal(faulty, "tests"))
    journal = Journal(store, "tests")
    assert await codes(journal, first) in ([], [1, 2])
    assert await codes(journal, second) in ([], [3])

    await story(journal)

    assert await codes(journal, first) == []
    assert await codes(journal, second) == [3]
    items = await journal.feed.read()
    assert [item.position for item in items] == [1, 2, 3, 4]
    of_first = [item.kind for item in items if item.history == first]
    assert of_first == [FeedKind.GONE, FeedKind.GONE, FeedKind.DELETED]
