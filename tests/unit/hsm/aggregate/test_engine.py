"""The engine of aggregates: versions, repeats, and what others do meanwhile."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from hsm.aggregate import AggregateOptions, Engine, InvalidDeleteBehaviorError, UnknownEventTypeError
from hsm.aggregate.options import UnknownEvents
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    EventId,
    EventIdSource,
    Expectation,
    Journal,
    NewEvent,
    UnknownEventError,
    UnknownHistoryError,
    VersionConflictError,
)
from persistence.proto.nogevents_pb2 import Event as Message
from tests.support.accounts import (
    Account,
    AccountCommand,
    Accounts,
    Close,
    CloseBadly,
    Deposit,
    Fact,
    Open,
    OverdrawnError,
    Withdraw,
)
from tests.support.journals import World, before_writes

Accounting = Engine[Account, AccountCommand, Fact]


@pytest.fixture
def id_() -> UUID:
    return uuid4()


@pytest.fixture
def engine(world: World) -> Accounting:
    return Engine(world.journal(), Accounts())


@pytest.fixture
def other(world: World) -> Accounting:
    """An engine of another process."""
    return Engine(world.other_journal(), Accounts())


async def events_of(journal: Journal, id_: UUID) -> list[EventId]:
    return [event.id async for event in journal.find(id_)]


async def test_aggregate_without_history_is_empty_and_at_the_epoch(engine: Accounting, id_: UUID) -> None:
    assert await engine.find_id(id_) == Account(id_, EPOCH)


async def test_command_comes_to_facts_that_others_see(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    opened = await engine.tell_id_vid_state(id_, EPOCH, Open("ann"))
    vid = await engine.tell_id_vid(id_, opened.vid, Deposit((3, 4)))

    found = await other.find_id(id_)
    ids = await events_of(world.journal(), id_)
    assert found == await engine.find_id(id_)
    assert (found.owner, found.balance, found.vid) == ("ann", 7, vid)
    assert (len(ids), ids[0], ids[-1]) == (3, opened.vid, vid)


async def test_facts_of_a_command_become_visible_together(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    seen: list[int] = []

    async def look(_: object) -> None:
        seen.append((await other.find_id(id_)).balance)

    await engine.tell_id_vid(id_, NO_VC, Open("ann"))
    world.faulty.before = world.faulty.after = look
    await engine.tell_id_vid(id_, NO_VC, Deposit((3, 4)))

    assert set(seen) == {0, 7}


async def test_state_is_found_as_it_was_at_each_version(
    engine: Accounting, other: Accounting, id_: UUID
) -> None:
    states = [await engine.find_id(id_), await engine.tell_id_vid_state(id_, EPOCH, Open("ann"))]
    states += [await engine.tell_id_vid_state(id_, NO_VC, Deposit((each, each))) for each in range(5)]
    for state in states:
        assert await engine.find_id_vid(id_, state.vid) == state
        assert await other.find_id_vid(id_, state.vid) == state
    # To look back does not change what is there now.
    assert await engine.find_id(id_) == states[-1]


async def test_version_that_never_was_is_told(engine: Accounting, id_: UUID) -> None:
    with pytest.raises(UnknownHistoryError):
        await engine.find_id_vid(id_, EventIdSource().new())
    vid = await engine.tell_id_vid(id_, EPOCH, Open("ann"))
    for never in (EventIdSource().new(vid), EventId(bytes(15) + b"\x01")):
        with pytest.raises(UnknownEventError):
            await engine.find_id_vid(id_, never)


async def test_command_without_facts_is_success_and_leaves_the_version(
    engine: Accounting, world: World, id_: UUID
) -> None:
    vid = await engine.tell_id_vid(id_, NO_VC, Open("ann"))
    writes = world.faulty.writes

    assert [await engine.tell_id_vid(id_, each, Open("ann")) for each in (vid, NO_VC, RETRY_NO_VC)] == [
        vid
    ] * 3
    assert world.faulty.writes == writes


@pytest.mark.parametrize("vid", [NO_VC, RETRY_NO_VC, EPOCH])
async def test_refused_command_raises_as_it_is_and_writes_nothing(
    engine: Accounting, world: World, id_: UUID, vid: Expectation
) -> None:
    with pytest.raises(OverdrawnError):
        await engine.tell_id_vid(id_, vid, Withdraw(1))

    assert world.faulty.writes == 0


async def test_other_version_than_the_present_one_is_a_conflict(engine: Accounting, id_: UUID) -> None:
    first = await engine.tell_id_vid(id_, EPOCH, Open("ann"))
    second = await engine.tell_id_vid(id_, first, Deposit((3,)))

    for wrong in (first, EPOCH):
        with pytest.raises(VersionConflictError) as caught:
            await engine.tell_id_vid(id_, wrong, Deposit((4,)))
        assert (caught.value.stored, caught.value.expected) == (second, wrong)
    assert (await engine.find_id(id_)).vid == second


async def test_version_of_a_history_that_is_not_there_is_a_conflict(engine: Accounting, id_: UUID) -> None:
    with pytest.raises(VersionConflictError) as caught:
        await engine.tell_id_vid(id_, EventId(b"1" * 16), Open("ann"))

    assert caught.value.stored == EPOCH


async def test_stale_state_cannot_be_told(engine: Accounting, other: Accounting, id_: UUID) -> None:
    stale = await engine.tell_id_vid_state(id_, NO_VC, Open("ann"))
    await other.tell_id_vid(id_, NO_VC, Deposit((3,)))

    with pytest.raises(VersionConflictError):
        await engine.tell_state(stale, Deposit((4,)))
    fresh = await engine.find_from_state(stale)
    assert (await engine.tell_state(fresh, Deposit((4,)))).balance == 7


async def test_state_that_was_given_out_never_changes(engine: Accounting, id_: UUID) -> None:
    first = await engine.tell_id_vid_state(id_, NO_VC, Deposit((1, 2)))
    second = await engine.tell_id_vid_state(id_, NO_VC, Deposit((3,)))

    assert (first.deposits, second.deposits) == ((1, 2), (1, 2, 3))


async def test_repeat_is_success_whatever_version_it_names(engine: Accounting, id_: UUID) -> None:
    first = await engine.tell_id_vid(id_, EPOCH, Deposit((3,), request_id="one"))
    second = await engine.tell_id_vid(id_, first, Deposit((4,), request_id="two"))

    for vid in (EPOCH, first, NO_VC, RETRY_NO_VC):
        assert await engine.tell_id_vid(id_, vid, Deposit((3,), request_id="one")) == second
    assert (await engine.find_id(id_)).balance == 7


# The cache


async def test_commit_of_another_process_is_seen(engine: Accounting, other: Accounting, id_: UUID) -> None:
    await engine.tell_id_vid(id_, NO_VC, Open("ann"))
    await other.tell_id_vid(id_, NO_VC, Deposit((3,)))

    assert (await engine.find_id(id_)).balance == 3


async def test_deletion_by_another_process_is_seen(engine: Accounting, other: Accounting, id_: UUID) -> None:
    await engine.tell_id_vid(id_, NO_VC, Open("ann"))
    await other.delete_id_vid(id_, NO_VC, Close())

    assert await engine.find_id(id_) == Account(id_)


async def test_what_was_deleted_can_begin_anew(engine: Accounting, other: Accounting, id_: UUID) -> None:
    for number in range(1, 4):
        vid = await engine.tell_id_vid(id_, EPOCH, Deposit((number,)))
        assert await engine.tell_id_vid(id_, vid, Withdraw(number))
        await other.delete_id_vid(id_, RETRY_NO_VC, Close())
        await other.tell_id_vid(id_, EPOCH, Deposit((number,)))
        assert (await engine.find_id(id_)).deposits == (number,)
        await engine.tell_id_vid(id_, RETRY_NO_VC, Withdraw(number))
        await engine.delete_id_vid(id_, NO_VC, Close())


async def test_unchanged_aggregate_costs_one_read(engine: Accounting, world: World, id_: UUID) -> None:
    await engine.tell_id_vid(id_, NO_VC, Open("ann"))
    calls = world.faulty.calls

    await engine.find_id(id_)

    assert world.faulty.calls == calls + 1


@pytest.mark.parametrize(("size", "reads"), [(2, "all"), (0, "none")])
async def test_cache_is_bounded(world: World, size: int, reads: str) -> None:
    engine = Engine(world.journal(), Accounts(), AggregateOptions(cache_size=size))
    ids = [uuid4() for _ in range(4)]
    for id_ in ids:
        await engine.tell_id_vid(id_, NO_VC, Open("ann"))

    scans: list[object] = []

    async def note(call: object) -> None:
        if getattr(call, "method", "") == "scan":
            scans.append(call)

    world.faulty.before = note
    for id_ in ids[-2:]:
        await engine.find_id(id_)
    assert len(scans) == (0 if reads == "all" else 2)
    for id_ in ids[:2]:
        await engine.find_id(id_)
    assert len(scans) == (2 if reads == "all" else 4)


# Deletion


async def test_delete_needs_leave(engine: Accounting, id_: UUID) -> None:
    await engine.tell_id_vid(id_, NO_VC, Deposit((3,)))

    with pytest.raises(OverdrawnError):
        await engine.delete_id_vid(id_, NO_VC, Close())
    with pytest.raises(InvalidDeleteBehaviorError):
        await engine.delete_id_vid(id_, NO_VC, CloseBadly())

    assert (await engine.find_id(id_)).balance == 3


async def test_delete_compares_versions(engine: Accounting, id_: UUID) -> None:
    first = await engine.tell_id_vid(id_, NO_VC, Deposit((3,)))
    second = await engine.tell_id_vid(id_, NO_VC, Withdraw(3))

    for wrong in (first, EPOCH):
        with pytest.raises(VersionConflictError):
            await engine.delete_id_vid(id_, wrong, Close())
    await engine.delete_id_vid(id_, second, Close())
    assert await engine.find_id(id_) == Account(id_)


async def test_delete_of_what_is_not_there_is_success_unless_a_version_is_named(
    engine: Accounting, id_: UUID
) -> None:
    for vid in (NO_VC, RETRY_NO_VC, EPOCH):
        await engine.delete_id_vid(id_, vid, Close())
    with pytest.raises(VersionConflictError):
        await engine.delete_id_vid(id_, EventId(b"1" * 16), Close())


async def test_delete_against_a_commit_is_a_conflict(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    await engine.tell_id_vid(id_, NO_VC, Open("ann"))
    world.faulty.before = before_writes(lambda: other.tell_id_vid(id_, NO_VC, Deposit((3,))), times=1)

    with pytest.raises(VersionConflictError):
        await engine.delete_id_vid(id_, NO_VC, Close())
    assert (await engine.find_id(id_)).balance == 3


async def test_commit_to_what_was_deleted_meanwhile_is_an_error(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    state = await engine.tell_id_vid_state(id_, NO_VC, Open("ann"))
    await other.delete_id_vid(id_, NO_VC, Close())

    with pytest.raises((UnknownHistoryError, VersionConflictError)):
        await engine.tell_state(state, Deposit((3,)))
    assert await engine.find_id(id_) == Account(id_)


# Events of others


async def commit_message(world: World, id_: UUID, message: Message) -> None:
    await world.other_journal().commit(id_, [NewEvent.of(message)], NO_VC)


async def test_event_of_an_unknown_type_is_refused_and_named(
    engine: Accounting, world: World, id_: UUID
) -> None:
    await engine.tell_id_vid(id_, NO_VC, Deposit((3,)))
    await commit_message(world, id_, Message(event=Message.EV_NAMED, type_name="frozen"))

    with pytest.raises(UnknownEventTypeError, match="frozen"):
        await engine.find_id(id_)


async def test_event_of_an_unknown_type_can_be_tolerated(world: World, id_: UUID) -> None:
    engine = Engine(world.journal(), Accounts(), AggregateOptions(unknown_events=UnknownEvents.SKIP))
    await engine.tell_id_vid(id_, NO_VC, Deposit((3,)))
    await commit_message(world, id_, Message(event=Message.EV_NAMED, type_name="frozen"))

    found = await engine.find_id(id_)
    assert found.balance == 3
    assert found.vid == await world.journal().head(id_)
    assert (await engine.tell_id_vid_state(id_, found.vid, Deposit((4,)))).balance == 7


async def test_event_of_another_aggregate_is_refused(engine: Accounting, world: World, id_: UUID) -> None:
    await commit_message(world, id_, Message(event=Message.EV_FSO_SERVER_PINGED))

    with pytest.raises(UnknownEventTypeError, match="EV_FSO_SERVER_PINGED"):
        await engine.find_id(id_)


async def test_event_of_an_earlier_version_is_brought_up_to_date(
    engine: Accounting, world: World, id_: UUID
) -> None:
    old = Message(event=Message.EV_NAMED, type_name="deposited", payload=b'{"sum": 5}')
    await commit_message(world, id_, old)

    assert (await engine.find_id(id_)).deposits == (5,)
