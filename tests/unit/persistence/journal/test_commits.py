from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from hsm.testing import Call, FaultyStore
from persistence import TransactionTooLargeError
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    EventId,
    EventMismatchError,
    InvalidEventError,
    Journal,
    JournalObserver,
    JournalOptions,
    NewEvent,
    RetryNoVCError,
    UnknownHistoryError,
    VersionConflictError,
)
from persistence.store import EngineStore
from tests.support.histories import codes, drain, numbered, rows

HISTORY = uuid4()


async def test_events_of_a_commit_form_a_chain(journal: Journal) -> None:
    first = await journal.commit(HISTORY, numbered(1, 2), EPOCH)
    second = await journal.commit(HISTORY, numbered(3), first.version)

    events = await drain(journal.find(HISTORY))

    assert tuple(events) == first.events + second.events
    assert [event.serial for event in events] == [1, 2, 3]
    assert [event.parent for event in events] == [EPOCH, *(event.id for event in events[:2])]
    assert await journal.head(HISTORY) == second.version == events[-1].id


async def test_event_carries_its_header(journal: Journal) -> None:
    committed = await journal.commit(HISTORY, numbered(1, 2), EPOCH)

    messages = [event.message() for event in await drain(journal.find(HISTORY))]

    assert [message.id for message in messages] == [event.id for event in committed.events]
    assert [message.parent for message in messages] == [EPOCH, committed.events[0].id]


async def test_header_in_the_payload_is_overruled(journal: Journal) -> None:
    (event,) = numbered(7)
    liar = NewEvent(b"\x12\x10" + b"\x01" * 16 + b"\x1a\x10" + b"\x02" * 16 + event.payload)

    committed = await journal.commit(HISTORY, [liar], EPOCH)
    message = committed.events[0].message()

    assert (message.id, message.parent, message.status_code) == (committed.version, EPOCH, 7)


async def test_history_that_does_not_exist_is_empty(journal: Journal) -> None:
    assert await journal.head(HISTORY) == EPOCH
    assert await drain(journal.find(HISTORY)) == []
    assert await drain(journal.find(HISTORY, reverse=True)) == []


async def test_commit_of_nothing_changes_nothing(journal: Journal) -> None:
    version = journal.ids.new()

    assert (await journal.commit(HISTORY, [], version)).version == version
    assert (await journal.commit(HISTORY, [], NO_VC)).version == EPOCH
    assert await rows(journal.store, journal) == []


@pytest.mark.parametrize("expected", ["epoch", "stale", "future"])
async def test_wrong_version_is_a_conflict_and_writes_nothing(journal: Journal, expected: str) -> None:
    first = await journal.commit(HISTORY, numbered(1), EPOCH)
    second = await journal.commit(HISTORY, numbered(2), first.version)
    version = {"epoch": EPOCH, "stale": first.version, "future": journal.ids.new()}[expected]
    before = await rows(journal.store, journal)

    with pytest.raises(VersionConflictError) as caught:
        await journal.commit(HISTORY, numbered(3), version)

    assert (caught.value.history, caught.value.stored, caught.value.expected) == (
        HISTORY,
        second.version,
        version,
    )
    assert await rows(journal.store, journal) == before


async def test_version_of_a_history_that_does_not_exist_is_told(journal: Journal) -> None:
    version = journal.ids.new()

    with pytest.raises(UnknownHistoryError) as caught:
        await journal.commit(HISTORY, numbered(1), version)

    assert (caught.value.history, caught.value.expected) == (HISTORY, version)


async def test_version_of_a_deleted_history_is_told(journal: Journal) -> None:
    version = (await journal.commit(HISTORY, numbered(1), EPOCH)).version
    await journal.delete(HISTORY, version)

    with pytest.raises(UnknownHistoryError):
        await journal.commit(HISTORY, numbered(2), version)


async def test_concurrent_first_commits_conflict(journal: Journal) -> None:
    other = Journal(journal.store, journal.namespace)

    outcomes = await asyncio.gather(
        *(each.commit(HISTORY, numbered(1), EPOCH) for each in (journal, other, journal, other)),
        return_exceptions=True,
    )

    conflicts = [outcome for outcome in outcomes if isinstance(outcome, VersionConflictError)]
    assert len(conflicts) == 3
    assert await codes(journal, HISTORY) == [1]


async def test_kept_head_that_is_stale_is_no_conflict(journal: Journal) -> None:
    other = Journal(journal.store, journal.namespace)
    await journal.commit(HISTORY, numbered(1), EPOCH)
    version = (await other.commit(HISTORY, numbered(2), NO_VC)).version

    await journal.commit(HISTORY, numbered(3), version)
    await other.commit(HISTORY, numbered(4), NO_VC)
    await journal.commit(HISTORY, numbered(5), NO_VC)

    assert await codes(journal, HISTORY) == [1, 2, 3, 4, 5]


class Intruder:
    """Commits by another journal whenever this one is about to write, so many times."""

    def __init__(self, store: EngineStore, times: int) -> None:
        self.journal = Journal(store, "tests")
        self.left = times

    async def __call__(self, call: Call) -> None:
        if call.method == "multi" and self.left:
            self.left -= 1
            await self.journal.commit(HISTORY, numbered(100 + self.left), NO_VC)


async def test_commit_without_expectation_meets_a_concurrent_one(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    faulty.before = intruder = Intruder(store, 1)
    journal = Journal(faulty, "tests")

    with pytest.raises(VersionConflictError) as caught:
        await journal.commit(HISTORY, numbered(1), NO_VC)

    assert caught.value.stored == await journal.head(HISTORY)
    assert intruder.left == 0
    assert await codes(journal, HISTORY) == [100]


class Counting(JournalObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def committed(self, history: object, events: int) -> None:
        self.seen.append(f"committed {events}")

    def conflicted(self, history: object) -> None:
        self.seen.append("conflicted")

    def retried(self, history: object) -> None:
        self.seen.append("retried")


async def test_commit_is_tried_six_times(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    faulty.before = Intruder(store, 5)
    observer = Counting()
    journal = Journal(faulty, "tests", observer=observer)

    await journal.commit(HISTORY, numbered(1), RETRY_NO_VC)

    assert await codes(journal, HISTORY) == [104, 103, 102, 101, 100, 1]
    assert observer.seen == ["conflicted", "retried"] * 5 + ["committed 1"]


async def test_sixth_conflict_is_told_with_its_cause(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    faulty.before = Intruder(store, 6)
    journal = Journal(faulty, "tests")

    with pytest.raises(RetryNoVCError) as caught:
        await journal.commit(HISTORY, numbered(1), RETRY_NO_VC)

    assert caught.value.tries == 6
    assert isinstance(caught.value.error, VersionConflictError)
    assert caught.value.__cause__ is caught.value.error
    assert 1 not in await codes(journal, HISTORY)


async def test_commits_with_retries_of_one_process_never_conflict(store: EngineStore) -> None:
    observer = Counting()
    journal = Journal(store, "tests", observer=observer)

    await asyncio.gather(*(journal.commit(HISTORY, numbered(n), RETRY_NO_VC) for n in range(50)))

    assert await codes(journal, HISTORY) == list(range(50))
    assert observer.seen == ["committed 1"] * 50


async def test_same_events_again_are_no_error_and_change_nothing(journal: Journal) -> None:
    committed = await journal.commit(HISTORY, numbered(1, 2), EPOCH)
    later = await journal.commit(HISTORY, numbered(3), committed.version)
    again = [event.again() for event in committed.events]
    before = await rows(journal.store, journal)

    for expected in (EPOCH, later.version, NO_VC, RETRY_NO_VC):
        repeated = await journal.commit(HISTORY, again, expected)
        assert repeated.events == committed.events
        assert repeated.version == later.version

    assert await rows(journal.store, journal) == before


async def test_same_events_at_another_place_are_a_conflict(journal: Journal) -> None:
    committed = await journal.commit(HISTORY, numbered(1, 2), EPOCH)
    await journal.commit(HISTORY, numbered(3), committed.version)

    with pytest.raises(VersionConflictError):
        await journal.commit(HISTORY, [committed.events[1].again()], EPOCH)


async def test_same_id_with_other_content_is_told(journal: Journal) -> None:
    committed = await journal.commit(HISTORY, numbered(1), EPOCH)
    other = NewEvent(numbered(2)[0].payload, committed.version)

    for expected in (EPOCH, committed.version, NO_VC):
        with pytest.raises(EventMismatchError) as caught:
            await journal.commit(HISTORY, [other], expected)
        assert caught.value.event_id == committed.version

    assert await codes(journal, HISTORY) == [1]


async def test_events_that_are_there_in_part_are_refused_as_a_whole(journal: Journal) -> None:
    committed = await journal.commit(HISTORY, numbered(1), EPOCH)
    new = NewEvent(numbered(2)[0].payload, journal.ids.new())

    with pytest.raises(InvalidEventError, match="1 of 2 events are not in the history"):
        await journal.commit(HISTORY, [committed.events[0].again(), new], committed.version)

    assert await codes(journal, HISTORY) == [1]


async def test_given_ids_are_kept_and_have_to_grow(journal: Journal) -> None:
    ids = [journal.ids.new() for _ in range(3)]
    payload = numbered(1)[0].payload

    committed = await journal.commit(HISTORY, [NewEvent(payload, ids[1])], EPOCH)
    assert committed.version == ids[1]
    with pytest.raises(InvalidEventError, match="ids have to grow"):
        await journal.commit(HISTORY, [NewEvent(payload, ids[0])], committed.version)
    with pytest.raises(InvalidEventError, match="ids have to grow"):
        await journal.commit(HISTORY, [NewEvent(payload, ids[2])] * 2, committed.version)
    with pytest.raises(InvalidEventError, match="either all of them or none"):
        await journal.commit(HISTORY, [NewEvent(payload, ids[2]), NewEvent(payload)], committed.version)
    with pytest.raises(InvalidEventError):
        await journal.commit(HISTORY, [NewEvent(payload, EPOCH)], committed.version)

    assert await codes(journal, HISTORY) == [1]


async def test_id_of_a_client_from_the_far_future_stops_nobody(journal: Journal) -> None:
    far = EventId(b"\x7f" + bytes(15))
    await journal.commit(HISTORY, [NewEvent(b"", far)], EPOCH)

    committed = await journal.commit(HISTORY, numbered(2), far)
    elsewhere = await journal.commit(uuid4(), numbered(3), EPOCH)

    assert committed.version > far
    assert elsewhere.version < far


async def test_too_many_events_for_a_transaction_are_refused(journal: Journal) -> None:
    most = journal.store.limits.operations

    with pytest.raises(TransactionTooLargeError):
        await journal.commit(HISTORY, [NewEvent(b"")] * most, EPOCH)

    assert await rows(journal.store, journal) == []


async def test_histories_and_namespaces_do_not_meet(store: EngineStore) -> None:
    one, two = Journal(store, "one"), Journal(store, "two")
    await one.commit(HISTORY, numbered(1), EPOCH)
    await two.commit(HISTORY, numbered(2), EPOCH)
    await one.commit(uuid4(), numbered(3), EPOCH)

    assert await codes(one, HISTORY) == [1]
    assert await codes(two, HISTORY) == [2]


async def test_kept_heads_are_bounded(store: EngineStore) -> None:
    journal = Journal(store, "tests", options=JournalOptions(kept_heads=2))
    histories = [uuid4() for _ in range(5)]
    for history in histories:
        await journal.commit(history, numbered(1), EPOCH)
    for history in histories:
        await journal.commit(history, numbered(2), NO_VC)

    for history in histories:
        assert await codes(journal, history) == [1, 2]


async def test_commits_that_go_together_have_each_their_own_outcome(journal: Journal) -> None:
    """One of them is too large, one repeats what is there, and one gives up waiting."""
    first = await journal.commit(HISTORY, numbered(0), EPOCH)
    too_many = [NewEvent(b"")] * journal.store.limits.operations
    tasks = [
        asyncio.ensure_future(journal.commit(HISTORY, events, RETRY_NO_VC))
        for events in (numbered(1, 2), too_many, [first.events[0].again()], numbered(3), numbered(4))
    ]
    await asyncio.sleep(0)
    tasks[3].cancel()

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(outcomes[1], TransactionTooLargeError)
    assert isinstance(outcomes[3], asyncio.CancelledError)
    found = await drain(journal.find(HISTORY))
    assert [event.message().status_code for event in found if event.message().status_code != 3] == [
        0,
        1,
        2,
        4,
    ]
    for outcome, expected in ((outcomes[0], [1, 2]), (outcomes[2], [0]), (outcomes[4], [4])):
        assert not isinstance(outcome, BaseException)
        assert [event.message().status_code for event in outcome.events] == expected
        assert set(outcome.events) <= set(found)


async def test_commits_that_go_together_are_one_transaction(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")

    await asyncio.gather(*(journal.commit(HISTORY, numbered(n), RETRY_NO_VC) for n in range(100)))

    assert await codes(journal, HISTORY) == list(range(100))
    assert faulty.writes <= 3
