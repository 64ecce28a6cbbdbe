"""The coordinator crashes at each of its writes: what it writes to two histories is completed."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from hsm.components.ping_registry import (
    ACTIVE_FOR,
    COMPLETED_FOR,
    EXPIRED,
    Coordinator,
    PingRegistryError,
    StateCode,
    StateConflictError,
    UninitializedError,
)
from hsm.testing import FakeClock
from hsm.testing.faults import Call
from persistence.errors import StoreUnavailableError
from persistence.journal import NO_VC, Expectation
from tests.support.coordinators import events_of, pending, summarized
from tests.support.journals import World

CARRIED_OUT = pytest.mark.parametrize("carried_out", [True, False], ids=["written", "lost"])


async def crashing(
    world: World,
    clock: FakeClock,
    write: int,
    step: Callable[[Coordinator], Awaitable[object]],
    *,
    carried_out: bool,
    registry: str = "reg",
) -> bool:
    """Carry out a step in a process that dies at a write; whether it did."""
    world.faulty.cut_off_at(world.faulty.writes + write, carried_out=carried_out)
    dying = Coordinator(world.journal(clock), registry, clock=clock)
    try:
        await step(dying)
    except PingRegistryError:
        assert world.faulty.is_cut_off
    died = world.faulty.is_cut_off
    world.faulty.reconnect()
    return died


@CARRIED_OUT
@pytest.mark.parametrize("who", ["caller", "daemon"])
async def test_begin_is_completed_after_a_crash_at_any_write(
    world: World, clock: FakeClock, other: Coordinator, who: str, carried_out: bool
) -> None:
    for write in itertools.count(1):
        id_ = uuid4()

        async def begin(dying: Coordinator, id_: UUID = id_) -> None:
            await dying.begin(id_, expected_servers=("a",))

        died = await crashing(world, clock, write, begin, carried_out=carried_out)
        if who == "caller" or (write == 1 and not carried_out):
            await other.begin(id_, expected_servers=("a",))
        else:
            await other.resume()
        assert await events_of(world, id_) == [111]
        assert (await other.workflows.find(id_)).expected_servers == ("a",)
        assert list((await other.index.find(other.index_id)).active)[-1] == id_
        assert await pending(world) == []
        if not died:
            break
    assert write == 5
    assert await events_of(world, other.index_id) == [111] * write


@CARRIED_OUT
@pytest.mark.parametrize("who", ["caller", "daemon"])
@pytest.mark.parametrize("versioned", [True, False])
async def test_commit_is_completed_after_a_crash_at_any_write(
    world: World, clock: FakeClock, other: Coordinator, who: str, versioned: bool, carried_out: bool
) -> None:
    for write in itertools.count(1):
        id_ = await summarized(other)
        vid = (await other.workflows.find(id_)).vid if versioned else NO_VC

        async def commit(dying: Coordinator, id_: UUID = id_, vid: Expectation = vid) -> None:
            await dying.commit(id_, vid)

        died = await crashing(world, clock, write, commit, carried_out=carried_out)
        if who == "caller" or (write == 1 and not carried_out):
            await other.commit(id_, vid)
        else:
            await other.resume()
        assert await events_of(world, id_) == [111, 112, 113, 114, 115]
        index = await other.index.find(other.index_id)
        assert (len(index.active), len(index.completed)) == (0, write)
        assert index.completed[id_].completed == (await other.workflows.find(id_)).completion.event_id
        assert await pending(world) == []
        if not died:
            break
    assert write == 6


@CARRIED_OUT
async def test_expiry_is_completed_after_a_crash_at_any_write(
    world: World, clock: FakeClock, carried_out: bool
) -> None:
    for write in itertools.count(1):
        registry = f"reg-{write}"
        other = Coordinator(world.other_journal(clock), registry, clock=clock)
        id_ = (await other.begin()).workflow_id
        clock.advance(ACTIVE_FOR + timedelta(seconds=1))
        died = await crashing(world, clock, write, expire_or_fail, registry=registry, carried_out=carried_out)
        report = await other.expire()
        assert report.failures == ()
        assert await events_of(world, id_) == [111, 114, 115]
        state = await other.workflows.find(id_)
        assert (state.summary_status.code, state.summary_status.message) == (EXPIRED, "expired")
        assert id_ in (await other.index.find(other.index_id)).completed
        assert await pending(world) == []
        if not died:
            break
    assert write == 6


@CARRIED_OUT
async def test_deletion_is_completed_after_a_crash_at_any_write(
    world: World, clock: FakeClock, other: Coordinator, carried_out: bool
) -> None:
    for write in itertools.count(1):
        id_ = await summarized(other)
        await other.commit(id_)
        clock.advance(COMPLETED_FOR + timedelta(seconds=1))
        died = await crashing(world, clock, write, expire_or_fail, carried_out=carried_out)
        report = await other.expire()
        assert report.failures == ()
        with pytest.raises(UninitializedError):
            await other.workflows.find(id_)
        index = await other.index.find(other.index_id)
        assert (dict(index.active), dict(index.completed)) == ({}, {})
        if not died:
            break
    assert write == 3
    assert await events_of(world, other.index_id) == [111, 114, 116] * write


async def expire_or_fail(coordinator: Coordinator) -> None:
    report = await coordinator.expire()
    for _, error in report.failures:
        raise error


async def test_command_under_way_is_not_that_of_another_request(
    world: World, clock: FakeClock, other: Coordinator
) -> None:
    id_ = await summarized(other)
    assert await crashing(
        world, clock, 1, lambda dying: dying.commit(id_, request_id="first"), carried_out=True
    )

    with pytest.raises(StateConflictError, match="under way"):
        await other.commit(id_, request_id="second")
    assert await other.resume() == 1
    assert (await other.workflows.find(id_)).state_code is StateCode.TERMINATED


async def test_command_that_was_refused_meanwhile_is_not_resumed(
    world: World, clock: FakeClock, other: Coordinator
) -> None:
    id_ = (await other.begin()).workflow_id
    assert await crashing(world, clock, 1, lambda dying: dying.commit(id_), carried_out=True)
    refusals: list[StateConflictError] = []

    async def overtake(call: Call) -> None:
        # It has listed what is pending.
        if call.method != "scan":
            world.faulty.before = None
            with pytest.raises(StateConflictError) as caught:
                await other.commit(id_)
            refusals.append(caught.value)
            await other.workflows.post_summary(id_, NO_VC, 0, "too late for that")

    world.faulty.before = overtake
    assert await Coordinator(world.journal(clock), "reg", clock=clock).resume() == 0

    assert len(refusals) == 1
    assert (await other.workflows.find(id_)).state_code is StateCode.SUMMARIZED
    assert await pending(world) == []


async def test_answer_is_told_though_its_record_cannot_be_forgotten(
    world: World, clock: FakeClock, coordinator: Coordinator, other: Coordinator
) -> None:
    early = (await other.begin()).workflow_id
    id_ = await summarized(other)

    async def refuse(call: Call) -> None:
        if call.method == "delete":
            raise StoreUnavailableError("away")

    world.faulty.before = refuse
    committed = await coordinator.commit(id_)
    with pytest.raises(StateConflictError):
        await coordinator.commit(early)

    assert committed.workflow_vid == (await other.workflows.find(id_)).vid
    assert len(await pending(world)) == 2
    await other.resume()
    assert await pending(world) == []
    assert await events_of(world, id_) == [111, 112, 113, 114, 115]
    assert await events_of(world, early) == [111]


async def test_commit_lists_a_workflow_whose_begin_has_crashed(
    world: World, clock: FakeClock, other: Coordinator
) -> None:
    id_ = uuid4()
    assert await crashing(world, clock, 3, lambda dying: dying.begin(id_), carried_out=False)
    assert dict((await other.index.find(other.index_id)).active) == {}
    await other.workflows.post_summary(id_, NO_VC, 0, "all well")
    await other.commit(id_)

    assert await events_of(world, other.index_id) == [111, 114]
    await other.resume()
    assert await events_of(world, other.index_id) == [111, 114]
    assert await pending(world) == []
