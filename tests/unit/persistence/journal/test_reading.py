from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import attrs
import pytest

from hsm.testing import Call, FaultyStore
from persistence.journal import (
    EPOCH,
    NO_VC,
    CorruptHistoryError,
    Event,
    EventId,
    HistoryError,
    Journal,
    JournalOptions,
    NewEvent,
    ParentMismatchError,
    TranscodingError,
    TrimmedError,
    UnknownEventError,
    UnknownHistoryError,
)
from persistence.proto.journal_pb2 import EventRow
from persistence.store import DeleteRequest, EngineStore, SetRequest
from tests.support.histories import codes, drain, numbered, rows

HISTORY = uuid4()


async def filled(journal: Journal, count: int = 7) -> tuple[Event, ...]:
    return (await journal.commit(HISTORY, numbered(*range(count)), EPOCH)).events


async def test_pages_in_order_cover_a_history(journal: Journal) -> None:
    events = await filled(journal)
    found: list[Event] = []
    while page := await drain(journal.find(HISTORY, found[-1].id if found else EPOCH, limit=3)):
        assert len(page) <= 3
        found += page

    assert tuple(found) == events


async def test_pages_in_reverse_cover_a_history(journal: Journal) -> None:
    events = await filled(journal)
    found: list[Event] = []
    while page := await drain(
        journal.find(HISTORY, before=found[-1].id if found else None, reverse=True, limit=3)
    ):
        found += page

    assert tuple(reversed(found)) == events


@pytest.mark.parametrize("reverse", [False, True])
async def test_both_bounds_are_left_out(journal: Journal, *, reverse: bool) -> None:
    events = await filled(journal)

    found = await drain(journal.find(HISTORY, events[1].id, before=events[4].id, reverse=reverse))

    assert (found[::-1] if reverse else found) == list(events[2:4])
    for after, before in ((events[1].id, events[2].id), (events[-1].id, None), (EPOCH, events[0].id)):
        assert await drain(journal.find(HISTORY, after, before=before, reverse=reverse)) == []
    assert await drain(journal.find(HISTORY, limit=0, reverse=reverse)) == []


@pytest.mark.parametrize("reverse", [False, True])
async def test_cursor_that_was_never_there_is_told(journal: Journal, *, reverse: bool) -> None:
    early = journal.ids.new()
    await filled(journal)
    late = journal.ids.new()

    for stranger in (early, late):
        with pytest.raises(UnknownEventError) as caught:
            await drain(journal.find(HISTORY, stranger, reverse=reverse))
        assert caught.value.event_id == stranger


@pytest.mark.parametrize("reverse", [False, True])
async def test_cursor_into_a_history_that_does_not_exist_is_told(journal: Journal, *, reverse: bool) -> None:
    with pytest.raises(UnknownHistoryError):
        await drain(journal.find(HISTORY, journal.ids.new(), reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
async def test_cursor_into_a_deleted_history_is_told(journal: Journal, *, reverse: bool) -> None:
    events = await filled(journal)
    await journal.delete(HISTORY, NO_VC)

    for _ in range(2):
        for event in (events[0], events[-1]):
            with pytest.raises(TrimmedError) as caught:
                await drain(journal.find(HISTORY, event.id, reverse=reverse))
            assert caught.value.event_id == event.id
        await journal.commit(HISTORY, numbered(1), NO_VC)  # and created again

    assert await codes(journal, HISTORY) == [1, 1]


async def test_events_committed_while_reading_are_left_for_the_next_time(journal: Journal) -> None:
    await filled(journal, 3)
    found: list[int] = []
    async for event in journal.find(HISTORY):
        found.append(event.message().status_code)
        await journal.commit(HISTORY, numbered(100), NO_VC)

    assert found == [0, 1, 2]


async def test_history_deleted_while_it_is_read_is_told(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    events = await filled(journal)

    async def remove(call: Call) -> None:
        if call.method == "scan":
            faulty.before = None
            await journal.delete(HISTORY, NO_VC)
            for event in events[:3]:
                await store.delete(DeleteRequest(key=key_of(event), partition=journal.partition))

    faulty.before = remove
    with pytest.raises(TrimmedError):
        await drain(journal.find(HISTORY))


def key_of(event: Event) -> str:
    return f"e/{event.history.hex}/{event.id.hex()}"


async def change(journal: Journal, event: Event, how: Callable[[EventRow], None]) -> None:
    (item,) = await rows(journal.store, journal, key_of(event))
    row = EventRow.FromString(item.value)
    how(row)
    await journal.store.set(
        SetRequest(key=item.key, value=row.SerializeToString(), partition=journal.partition)
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("index", [0, 3, 6])
async def test_missing_event_is_noticed(journal: Journal, index: int, *, reverse: bool) -> None:
    events = await filled(journal)
    await journal.store.delete(DeleteRequest(key=key_of(events[index]), partition=journal.partition))

    with pytest.raises(CorruptHistoryError) as caught:
        await drain(journal.find(HISTORY, reverse=reverse))

    assert caught.value.history == HISTORY


async def test_event_behind_another_than_its_parent_is_noticed(journal: Journal) -> None:
    events = await filled(journal)
    await journal.store.delete(DeleteRequest(key=key_of(events[3]), partition=journal.partition))

    with pytest.raises(ParentMismatchError) as caught:
        await drain(journal.find(HISTORY))

    assert (caught.value.event_id, caught.value.parent, caught.value.previous) == (
        events[4].id,
        events[3].id,
        events[2].id,
    )


@pytest.mark.parametrize("reverse", [False, True])
async def test_changed_parent_is_noticed(journal: Journal, *, reverse: bool) -> None:
    events = await filled(journal)

    def lie(row: EventRow) -> None:
        row.parent = events[0].id

    await change(journal, events[3], lie)
    with pytest.raises(CorruptHistoryError):
        await drain(journal.find(HISTORY, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
async def test_content_of_another_event_is_noticed(journal: Journal, *, reverse: bool) -> None:
    events = await filled(journal)

    def swap(row: EventRow) -> None:
        row.data = events[5].data

    await change(journal, events[3], swap)
    with pytest.raises(CorruptHistoryError, match="belongs to another event"):
        await drain(journal.find(HISTORY, reverse=reverse))


async def test_row_that_is_none_is_noticed(journal: Journal) -> None:
    events = await filled(journal)
    await journal.store.set(SetRequest(key=key_of(events[2]), value=b"\xff\xff", partition=journal.partition))

    with pytest.raises(CorruptHistoryError, match="damaged") as caught:
        await drain(journal.find(HISTORY))

    assert caught.value.event_id == events[2].id


async def test_event_that_is_no_message_is_told_with_its_type(journal: Journal) -> None:
    (event,) = (await journal.commit(HISTORY, [NewEvent(b"\x0b")], EPOCH)).events

    with pytest.raises(TranscodingError, match=r"nogevents\.Event") as caught:
        event.message()

    assert (caught.value.history, caught.value.event_id) == (HISTORY, event.id)


async def test_damaged_head_is_told(journal: Journal) -> None:
    await filled(journal)
    key = f"h/{HISTORY.hex}"
    await journal.store.set(SetRequest(key=key, value=b"\xff\xff", partition=journal.partition))

    with pytest.raises(CorruptHistoryError, match="row of the history"):
        await journal.head(HISTORY)


@attrs.frozen
class Tampering:
    name: str
    change: Callable[[EventRow], None]


def _rewrite(row: EventRow) -> None:
    row.data = row.data[:2] + b"\x05" + row.data[3:]  # its status code


def _strip(row: EventRow) -> None:
    row.hash = b""


def _rehash(row: EventRow) -> None:
    row.hash = bytes(32)


TAMPERINGS = [Tampering("rewritten", _rewrite), Tampering("stripped", _strip), Tampering("rehashed", _rehash)]


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda tampering: tampering.name)
@pytest.mark.parametrize("where", ["all", "reverse", "middle"])
async def test_hash_chain_shows_what_was_changed(
    store: EngineStore, tampering: Tampering, where: str
) -> None:
    journal = Journal(store, "tests", options=JournalOptions(hash_chain=True))
    events = await filled(journal)
    after = events[2].id if where == "middle" else EPOCH
    found = await drain(journal.find(HISTORY, after, reverse=where == "reverse"))
    assert len(found) == (4 if where == "middle" else 7)

    await change(journal, events[4], tampering.change)

    with pytest.raises(HistoryError):
        await drain(journal.find(HISTORY, after, reverse=where == "reverse"))


async def test_without_a_hash_chain_the_same_change_goes_unnoticed(journal: Journal) -> None:
    events = await filled(journal)

    await change(journal, events[4], _rewrite)

    assert await codes(journal, HISTORY) == [0, 1, 2, 3, 5, 5, 6]


async def test_hash_chain_goes_on_whoever_commits(store: EngineStore) -> None:
    hashing, plain = Journal(store, "tests", options=JournalOptions(hash_chain=True)), Journal(store, "tests")
    await hashing.commit(HISTORY, numbered(1), NO_VC)
    await plain.commit(HISTORY, numbered(2), NO_VC)

    events = await drain(plain.find(HISTORY))

    assert all(len(event.hash) == 32 for event in events)
    assert await codes(hashing, HISTORY, events[0].id) == [2]


async def test_hash_chain_can_begin_later(store: EngineStore) -> None:
    hashing, plain = Journal(store, "tests", options=JournalOptions(hash_chain=True)), Journal(store, "tests")
    await plain.commit(HISTORY, numbered(1, 2), NO_VC)
    await hashing.commit(HISTORY, numbered(3, 4), NO_VC)

    events = await drain(plain.find(HISTORY))

    assert [bool(event.hash) for event in events] == [False, False, True, True]
    for event in events:
        assert len(await drain(plain.find(HISTORY, event.id))) == 4 - event.serial
    assert await drain(plain.find(HISTORY, reverse=True)) == events[::-1]


async def test_ids_are_of_their_own_type(journal: Journal) -> None:
    await filled(journal)

    for event in await drain(journal.find(HISTORY)):
        assert type(event.id) is EventId
        assert type(event.parent) is EventId
