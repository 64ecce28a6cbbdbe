from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from persistence import connect
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    Journal,
    NewEvent,
    TrimmedError,
    UnknownHistoryError,
    VersionConflictError,
)
from persistence.proto.nogevents_pb2 import Event as EventMessage

HISTORY = uuid4()


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/journal.db"
    async with connect(url) as store, Journal(store, "tests") as journal:
        yield journal


def pings(*codes: int) -> list[NewEvent]:
    return [NewEvent.of(EventMessage(status_code=code)) for code in codes]


async def codes(journal: Journal, *, reverse: bool = False) -> list[int]:
    return [event.message().status_code async for event in journal.find(HISTORY, reverse=reverse)]


async def test_events_come_back_in_order_and_in_reverse(journal: Journal) -> None:
    first = await journal.commit(HISTORY, pings(1, 2), EPOCH)
    second = await journal.commit(HISTORY, pings(3), first.version)

    assert await journal.head(HISTORY) == second.version
    assert await codes(journal) == [1, 2, 3]
    assert await codes(journal, reverse=True) == [3, 2, 1]


async def test_event_carries_its_header(journal: Journal) -> None:
    committed = await journal.commit(HISTORY, pings(1, 2), EPOCH)

    messages = [event.message() async for event in journal.find(HISTORY)]

    assert [message.id for message in messages] == [event.id for event in committed.events]
    assert [message.parent for message in messages] == [EPOCH, committed.events[0].id]


async def test_second_first_commit_is_a_conflict(journal: Journal) -> None:
    committed = await journal.commit(HISTORY, pings(1), EPOCH)

    with pytest.raises(VersionConflictError) as caught:
        await journal.commit(HISTORY, pings(2), EPOCH)

    assert (caught.value.stored, caught.value.expected) == (committed.version, EPOCH)


async def test_commit_without_expectation_follows_whatever_is_there(journal: Journal) -> None:
    await journal.commit(HISTORY, pings(1), NO_VC)
    await journal.commit(HISTORY, pings(2), RETRY_NO_VC)

    assert await codes(journal) == [1, 2]


async def test_unknown_history_is_told_from_a_conflict(journal: Journal) -> None:
    version = journal.ids.new()

    with pytest.raises(UnknownHistoryError):
        await journal.commit(HISTORY, pings(1), version)


async def test_deleted_history_is_empty_and_can_be_created_again(journal: Journal) -> None:
    old = await journal.commit(HISTORY, pings(1), EPOCH)

    assert await journal.delete(HISTORY, old.version)
    assert await journal.head(HISTORY) == EPOCH
    assert await codes(journal) == []
    new = await journal.commit(HISTORY, pings(2), EPOCH)

    assert await codes(journal) == [2]
    assert new.events[0].serial == old.events[0].serial + 1
    with pytest.raises(TrimmedError):
        [event async for event in journal.find(HISTORY, old.version)]
