"""Snapshots, trimmed histories and types of histories: what an engine makes of what the journal offers."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import attrs
import pytest

from hsm.aggregate import AggregateOptions, Engine, UnknownEvents, UnknownEventTypeError
from hsm.components.ping_registry import INDEX_HISTORY, IndexTrimPolicy, WorkflowIndex
from hsm.testing import FakeClock
from hsm.testing.faults import Call
from persistence.errors import InvalidRequestError
from persistence.journal import (
    NO_VC,
    RETRY_NO_VC,
    Event,
    EventId,
    EventIdSource,
    Retention,
    TrimmedError,
)
from persistence.proto.nogevents_pb2 import Event as Message
from tests.support.accounts import Account, AccountCommand, Accounts, Close, Deposit, Fact, Withdraw
from tests.support.journals import World

IDS = EventIdSource()
MONTH = timedelta(days=31)


@attrs.frozen
class Snapshotted(Accounts):
    """Accounts with snapshots."""

    snapshot_version: int = 1
    snapshot_interval: int = 10
    history_type: str = "account"

    def store_state(self, state: Account, /) -> bytes:
        return json.dumps([state.owner, state.balance, len(state.deposits)]).encode()

    def restore_state(self, id_: UUID, data: bytes, /) -> Account:
        owner, balance, count = json.loads(data)
        return Account(id_, owner=owner, balance=balance, deposits=(0,) * count)


@pytest.fixture
def id_() -> UUID:
    return uuid4()


def reader(world: World, behavior: Accounts) -> Engine[Account, AccountCommand, Fact]:
    """An engine that has read nothing yet."""
    return Engine(world.journal(), behavior)


async def events_read(world: World, id_: UUID, behavior: Snapshotted) -> tuple[Account, int]:
    """What an engine finds that has read nothing yet, and how many events it reads for that."""
    reads: list[Message] = []

    @attrs.frozen
    class Counting(Snapshotted):
        def new_event(self, message: Message, /) -> Fact:
            reads.append(message)
            return super().new_event(message)

    counting = Counting(behavior.snapshot_version, behavior.snapshot_interval)
    return await Engine(world.journal(), counting).find_id(id_), len(reads)


async def test_long_history_is_read_from_the_last_snapshot_on(world: World, id_: UUID) -> None:
    writer = Engine(world.other_journal(), Accounts())
    await writer.tell_id_vid(id_, NO_VC, Deposit((1,) * 25))

    first, reads = await events_read(world, id_, Snapshotted())
    assert (first.balance, reads) == (25, 25)
    assert await events_read(world, id_, Snapshotted()) == (attrs.evolve(first, deposits=(0,) * 25), 0)
    await writer.tell_id_vid(id_, NO_VC, Deposit((2, 2)))
    found, reads = await events_read(world, id_, Snapshotted())
    assert (found.balance, reads, found.vid) == (29, 2, (await writer.find_id(id_)).vid)
    assert (await reader(world, Snapshotted()).tell_id_vid_state(id_, found.vid, Deposit((1,)))).balance == 30


async def test_snapshot_of_another_version_is_passed_over(world: World, id_: UUID) -> None:
    await Engine(world.other_journal(), Accounts()).tell_id_vid(id_, NO_VC, Deposit((1,) * 25))
    await events_read(world, id_, Snapshotted())

    found, reads = await events_read(world, id_, Snapshotted(snapshot_version=2))
    assert (found.balance, reads) == (25, 25)


async def test_snapshot_of_an_earlier_life_is_passed_over(world: World, id_: UUID) -> None:
    writer = Engine(world.other_journal(), Accounts())
    await writer.tell_id_vid(id_, NO_VC, Deposit((1,) * 25))
    await events_read(world, id_, Snapshotted())
    await writer.tell_id_vid(id_, NO_VC, Withdraw(25))
    await writer.delete_id_vid(id_, NO_VC, Close())
    assert await reader(world, Snapshotted()).find_id(id_) == Account(id_)
    await writer.tell_id_vid(id_, NO_VC, Deposit((7,)))

    assert (await reader(world, Snapshotted()).find_id(id_)).deposits == (7,)


async def test_short_history_has_no_snapshot(world: World, id_: UUID) -> None:
    await Engine(world.other_journal(), Accounts()).tell_id_vid(id_, NO_VC, Deposit((1,) * 9))
    writes = world.faulty.writes

    await events_read(world, id_, Snapshotted())

    assert world.faulty.writes == writes


async def test_state_is_found_though_its_snapshot_cannot_be_saved(
    world: World, id_: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    await Engine(world.other_journal(), Accounts()).tell_id_vid(id_, NO_VC, Deposit((1,) * 25))

    async def refuse(call: Call) -> None:
        if call.method == "set":
            raise InvalidRequestError("a snapshot is too large for this store")

    world.faulty.before = refuse
    found, reads = await events_read(world, id_, Snapshotted())

    assert (found.balance, reads) == (25, 25)
    assert "too large for this store" in caplog.text


async def test_state_without_unknown_events_is_no_snapshot(world: World, id_: UUID) -> None:
    @attrs.frozen
    class Older(Snapshotted):
        def new_event(self, message: Message, /) -> Fact:
            if message.type_name == "withdrawn":
                raise UnknownEventTypeError(message.type_name)
            return super().new_event(message)

    writer = Engine(world.other_journal(), Accounts())
    await writer.tell_id_vid(id_, NO_VC, Deposit((1,) * 25))
    await writer.tell_id_vid(id_, NO_VC, Withdraw(5))
    older: Engine[Account, AccountCommand, Fact] = Engine(
        world.journal(), Older(), AggregateOptions(unknown_events=UnknownEvents.SKIP)
    )
    assert (await older.find_id(id_)).balance == 25
    await writer.tell_id_vid(id_, NO_VC, Deposit((1,) * 10))
    assert (await older.find_id(id_)).balance == 35

    assert (await reader(world, Snapshotted()).find_id(id_)).balance == 30


class FromTheFifth:
    """Begins a history behind its fifth event, and forgets what is before at once."""

    def is_new_epoch(self, last: Event, following: Event | None, now: datetime) -> bool:
        return last.serial == 5

    def is_new_tail(self, epoch: EventId, set_at: datetime, now: datetime) -> bool:
        return True


async def test_stale_state_is_read_anew_from_a_trimmed_history(world: World, id_: UUID) -> None:
    clock = FakeClock()
    engine = Engine(world.journal(clock), Snapshotted(snapshot_interval=1000))
    await engine.tell_id_vid(id_, NO_VC, Deposit((1, 2)))
    journal = world.other_journal(clock)
    await Engine(journal, Accounts()).tell_id_vid(id_, NO_VC, Deposit((3, 4, 5, 6, 7)))
    retention = Retention(journal, {"account": FromTheFifth()})
    for _ in range(3):
        await retention.trim()
        clock.advance(MONTH)
        await retention.collect()

    # The state that it has is older than anything that is left.
    assert (await engine.find_id(id_)).deposits == (6, 7)


async def test_earlier_state_is_found_from_the_snapshot_before_it(world: World, id_: UUID) -> None:
    writer = Engine(world.other_journal(), Accounts())
    early = await writer.tell_id_vid_state(id_, NO_VC, Deposit((1,) * 5))
    await writer.tell_id_vid(id_, NO_VC, Deposit((1,) * 15))
    await events_read(world, id_, Snapshotted())
    later = await writer.tell_id_vid_state(id_, NO_VC, Deposit((2,)))
    await writer.tell_id_vid(id_, NO_VC, Deposit((3,)))

    engine = reader(world, Snapshotted())
    assert await engine.find_id_vid(id_, early.vid) == early
    assert await engine.find_id_vid(id_, later.vid) == attrs.evolve(later, deposits=(0,) * 20 + (2,))


async def test_earlier_state_of_a_trimmed_history_may_be_gone(world: World, id_: UUID) -> None:
    clock = FakeClock()
    journal = world.other_journal(clock)
    engine = Engine(journal, Accounts())
    states = [await engine.tell_id_vid_state(id_, NO_VC, Deposit((number,))) for number in range(1, 8)]
    account = Engine(world.journal(clock), Snapshotted(snapshot_interval=1000))
    await account.tell_id_vid(id_, NO_VC, Deposit((8,)))
    retention = Retention(journal, {"": FromTheFifth(), "account": FromTheFifth()})

    async def gone() -> list[bool]:
        found: list[bool] = []
        for state in states:
            try:
                assert (await account.find_id_vid(id_, state.vid)).deposits[-1:] == state.deposits[-1:]
            except TrimmedError:
                found.append(True)
            else:
                found.append(False)
        return found

    assert await gone() == 7 * [False]
    for _ in range(3):
        await retention.trim()
        assert await gone() == 5 * [True] + 2 * [False]
        clock.advance(MONTH)
        await retention.collect()


async def test_index_begins_with_its_last_snapshot_when_it_is_trimmed(world: World) -> None:
    clock = FakeClock()
    journal = world.other_journal(clock)
    index, index_id = WorkflowIndex(journal), uuid4()
    workflows = [uuid4() for _ in range(6)]
    for workflow in workflows[:5]:
        await index.begin(index_id, workflow, IDS.new())
    await index.commit(index_id, workflows[0], IDS.new())
    await index.snapshot(index_id)
    await index.begin(index_id, workflows[5], IDS.new())
    before = await index.find(index_id)
    retention = Retention(journal, {INDEX_HISTORY: IndexTrimPolicy()})

    async def kinds() -> list[int]:
        return [event.message().event async for event in journal.find(index_id)]

    assert (await retention.trim()).epochs == 1
    assert await kinds() == [141, 92, 142, 111]
    assert (await retention.trim()).tails == 0
    clock.advance(MONTH)
    assert (await retention.trim()).tails == 1
    clock.advance(MONTH)
    assert (await retention.collect()).events > 0
    assert await kinds() == [141, 92, 142, 111]
    assert await WorkflowIndex(world.journal(clock)).find(index_id) == before
    assert await index.begin(index_id, uuid4(), IDS.new(), RETRY_NO_VC) > before.vid
