"""The coordinator: what it begins, commits, tells and expires in two histories."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from hsm.aggregate import AggregateOptions
from hsm.components.ping_registry import (
    ACTIVE_FOR,
    COMPLETED_FOR,
    EXPIRED,
    ArgumentNotIdempotentError,
    Coordinator,
    Init,
    InvalidNameError,
    JournalError,
    StateCode,
    StateConflictError,
    SummaryCode,
    UninitializedError,
    WorkflowAbortedError,
)
from hsm.testing import FakeClock
from hsm.testing.faults import Call
from persistence.journal import NO_VC, RETRY_NO_VC, NewEvent
from persistence.proto.nogevents_pb2 import Event as Message
from tests.support.coordinators import events_of, pending, summarized
from tests.support.journals import World

# In good weather


async def test_begin_starts_and_lists_a_workflow(
    coordinator: Coordinator, other: Coordinator, world: World
) -> None:
    begun = await coordinator.begin(expected_servers=("a", "b"))

    state = await other.workflows.find(begun.workflow_id)
    index = await other.index.find(other.index_id)
    assert (state.vid, state.state_code) == (begun.workflow_vid, StateCode.INITIALIZED)
    assert (state.registry_id, state.expected_servers) == (other.registry_id, ("a", "b"))
    assert (index.vid, list(index.active)) == (begun.index_vid, [begun.workflow_id])
    assert index.active[begun.workflow_id].started == begun.workflow_vid
    assert await pending(world) == []


async def test_begin_can_be_asked_for_again_at_any_time(coordinator: Coordinator, other: Coordinator) -> None:
    id_ = uuid4()
    first = await coordinator.begin(id_)
    assert await other.begin(id_) == first
    await other.workflows.append_ping(id_, NO_VC, 0, "here")

    again = await coordinator.begin(id_)
    assert (again.index_vid, len((await other.index.find(other.index_id)).active)) == (first.index_vid, 1)
    with pytest.raises(StateConflictError):
        await coordinator.begin(id_, request_id="another")
    with pytest.raises(ArgumentNotIdempotentError):
        await coordinator.begin(id_, expected_servers=("a",))


async def test_request_without_a_workflow_begins_one_however_often_it_is_made(
    coordinator: Coordinator, other: Coordinator, world: World
) -> None:
    first = await coordinator.begin(request_id="monday", expected_servers=("a",))

    assert await other.begin(request_id="monday", expected_servers=("a",)) == first
    with pytest.raises(ArgumentNotIdempotentError):
        await other.begin(request_id="monday")
    tuesday = await other.begin(request_id="tuesday")
    elsewhere = await Coordinator(world.other_journal(), "other").begin(request_id="monday")

    assert len({begun.workflow_id for begun in (first, tuesday, elsewhere)}) == 3
    assert list((await other.index.find(other.index_id)).active) == [first.workflow_id, tuesday.workflow_id]


async def test_commit_completes_first_the_workflow_then_the_index_then_ends(
    coordinator: Coordinator, world: World
) -> None:
    id_ = await summarized(coordinator)
    writes: list[UUID | str] = []

    async def note(call: object) -> None:
        operations = getattr(call, "request", None)
        if getattr(call, "method", "") == "multi" and isinstance(operations, list):
            keys = [operation.key for operation in operations]
            writes.extend(
                UUID(key[2:]) if key.startswith("h/") else "saga" for key in keys if key[:2] in {"h/", "pi"}
            )

    world.faulty.before = note
    committed = await coordinator.commit(id_)

    assert writes[-3:] == [id_, coordinator.index_id, id_]
    assert await events_of(world, id_) == [111, 112, 113, 114, 115]
    assert await events_of(world, coordinator.index_id) == [111, 114]
    assert (await coordinator.workflows.find(id_)).vid == committed.workflow_vid
    assert (await coordinator.index.find(coordinator.index_id)).vid == committed.index_vid
    assert await pending(world) == []


async def test_commit_can_be_asked_for_again_at_any_time(
    coordinator: Coordinator, other: Coordinator
) -> None:
    id_ = await summarized(coordinator)
    vid = (await coordinator.workflows.find(id_)).vid
    first = await coordinator.commit(id_, vid)
    later = await summarized(coordinator)
    await coordinator.commit(later)

    again = await other.commit(id_, vid)
    assert again.workflow_vid == first.workflow_vid
    with pytest.raises(StateConflictError):
        await other.commit(id_, request_id="another")


async def test_commit_checks_the_version_and_the_state(coordinator: Coordinator, world: World) -> None:
    begun = await coordinator.begin()
    id_ = begun.workflow_id
    with pytest.raises(StateConflictError):
        await coordinator.commit(id_)
    await coordinator.workflows.post_summary(id_, NO_VC, 0, "all well")
    with pytest.raises(JournalError, match="version"):
        await coordinator.commit(id_, begun.workflow_vid)
    with pytest.raises(UninitializedError):
        await coordinator.commit(uuid4())

    assert (await coordinator.workflows.find(id_)).state_code is StateCode.SUMMARIZED


async def test_commit_for_a_version_that_has_gone_is_not_resumed_and_stands_in_nobodys_way(
    coordinator: Coordinator, other: Coordinator, world: World
) -> None:
    begun = await coordinator.begin()
    await coordinator.workflows.post_summary(begun.workflow_id, NO_VC, 0, "all well")
    with pytest.raises(JournalError):
        await coordinator.commit(begun.workflow_id, begun.workflow_vid)

    await other.resume()
    assert (await other.workflows.find(begun.workflow_id)).state_code is StateCode.SUMMARIZED
    assert await pending(world) == []
    await other.commit(begun.workflow_id, (await other.workflows.find(begun.workflow_id)).vid)
    assert (await other.workflows.find(begun.workflow_id)).state_code is StateCode.TERMINATED


async def test_commit_by_two_for_one_request_succeeds_for_both(
    coordinator: Coordinator, other: Coordinator, world: World
) -> None:
    id_ = await summarized(coordinator)
    vid = (await coordinator.workflows.find(id_)).vid

    async def commit(call: Call) -> None:
        if call.method == "multi" and f"h/{id_.hex}" in str(call.request):
            world.faulty.before = None
            await other.commit(id_, vid)

    world.faulty.before = commit
    committed = await coordinator.commit(id_, vid)

    assert committed.workflow_vid == (await other.workflows.find(id_)).vid
    assert await events_of(world, id_) == [111, 112, 113, 114, 115]
    assert await pending(world) == []


async def test_begin_by_two_for_one_request_succeeds_for_both(
    coordinator: Coordinator, other: Coordinator, world: World
) -> None:
    id_ = uuid4()

    async def resume(call: Call) -> None:
        if call.method == "multi" and f"h/{id_.hex}" in str(call.request):
            world.faulty.before = None
            assert await other.resume() == 1
            await other.workflows.append_ping(id_, NO_VC, 0, "here")

    world.faulty.before = resume
    begun = await coordinator.begin(id_)

    assert begun.workflow_vid == (await other.workflows.find(id_)).vid
    assert await events_of(world, id_) == [111, 112]
    assert await events_of(world, other.index_id) == [111]
    assert await pending(world) == []


async def test_begin_by_two_for_different_requests_is_refused_to_one(
    coordinator: Coordinator, other: Coordinator, world: World
) -> None:
    id_ = uuid4()

    async def begin(call: Call) -> None:
        if call.method == "multi" and f"h/{id_.hex}" in str(call.request):
            world.faulty.before = None
            await other.workflows.init(id_, Init(other.registry_id, ("a",), "another"))

    world.faulty.before = begin
    with pytest.raises(ArgumentNotIdempotentError):
        await coordinator.begin(id_)

    assert await events_of(world, id_) == [111]
    assert await pending(world) == []


async def test_workflow_of_another_registry_is_refused(coordinator: Coordinator, world: World) -> None:
    id_ = await summarized(Coordinator(world.other_journal(), "other"))

    for refused in (coordinator.commit(id_), coordinator.get(id_)):
        with pytest.raises(StateConflictError, match="registry"):
            await refused


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "x" * 65])
async def test_names_are_checked(world: World, name: str) -> None:
    with pytest.raises(InvalidNameError):
        Coordinator(world.journal(), name)


# What was gathered


async def test_get_tells_how_far_the_workflow_is(coordinator: Coordinator) -> None:
    id_ = uuid4()
    with pytest.raises(UninitializedError):
        await coordinator.get(id_)
    seen = []
    for step in (
        lambda: coordinator.begin(id_),
        lambda: coordinator.workflows.append_ping(id_, NO_VC, 0, "here"),
        lambda: coordinator.workflows.post_summary(id_, NO_VC, 1, "not well"),
        lambda: coordinator.commit(id_),
    ):
        await step()
        gathered = await coordinator.get(id_)
        seen.append((gathered.code, gathered.message, gathered.complete))

    assert seen == [
        (SummaryCode.ACTIVE, "initialized", False),
        (SummaryCode.ACTIVE, "appending", False),
        (SummaryCode.SUMMARIZED, "not well", True),
        (1, "not well", True),
    ]
    assert (SummaryCode.ACTIVE, SummaryCode.SUMMARIZED) == (101, 100)


@pytest.mark.parametrize("end", ["summary", "abort"])
@pytest.mark.parametrize("elsewhere", [True, False])
async def test_wait_wakes_up_on_summary_and_on_abort(world: World, end: str, elsewhere: bool) -> None:
    waiting = Coordinator(world.journal(), "reg")
    acting = Coordinator(world.other_journal(), "reg") if elsewhere else waiting
    begun = await waiting.begin()
    id_ = begun.workflow_id
    wait = asyncio.create_task(waiting.get(id_, wait=True, timeout=timedelta(seconds=60)))
    for _ in range(20):
        await asyncio.sleep(0)

    await acting.workflows.append_ping(id_, RETRY_NO_VC, 0, "here")
    if end == "summary":
        await acting.workflows.post_summary(id_, RETRY_NO_VC, 0, "all well")
    else:
        await acting.workflows.abort_expired(id_, RETRY_NO_VC)

    gathered = await wait
    assert gathered.complete
    assert (gathered.code, gathered.message) == (
        (100, "all well") if end == "summary" else (EXPIRED, "expired")
    )


async def test_wait_comes_to_an_end(world: World) -> None:
    coordinator = Coordinator(world.journal(), "reg")
    begun = await coordinator.begin()

    with pytest.raises(TimeoutError):
        await coordinator.get(begun.workflow_id, wait=True, timeout=timedelta(milliseconds=50))
    with pytest.raises(UninitializedError):
        await coordinator.get(uuid4(), wait=True)


# Expiry


async def test_only_what_is_too_old_expires(coordinator: Coordinator, clock: FakeClock) -> None:
    old = (await coordinator.begin()).workflow_id
    clock.advance(timedelta(hours=1))
    young = (await coordinator.begin()).workflow_id
    clock.advance(ACTIVE_FOR - timedelta(hours=1))
    assert (await coordinator.expire()).aborted == ()
    clock.advance(timedelta(milliseconds=2))

    assert (await coordinator.expire()).aborted == (old,)
    assert (await coordinator.expire()).aborted == ()
    index = await coordinator.index.find(coordinator.index_id)
    assert (list(index.active), list(index.completed)) == ([young], [old])
    clock.advance(COMPLETED_FOR)
    report = await coordinator.expire()
    assert (report.aborted, report.deleted) == ((young,), ())
    clock.advance(timedelta(milliseconds=2))
    assert (await coordinator.expire()).deleted == (old,)


async def test_two_that_see_to_the_same_workflows_do_so_without_failures(
    world: World, clock: FakeClock
) -> None:
    # Pauses between tries are in real time.
    both = [
        Coordinator(journal, "reg", clock=clock, options=AggregateOptions())
        for journal in (world.journal(clock), world.other_journal(clock))
    ]
    ids = {(await both[0].begin()).workflow_id for _ in range(5)}
    clock.advance(ACTIVE_FOR * 2)
    aborting = await asyncio.gather(*(each.expire() for each in both))
    clock.advance(COMPLETED_FOR * 2)
    deleting = await asyncio.gather(*(each.expire() for each in both))

    assert [report.failures for report in (*aborting, *deleting)] == [()] * 4
    assert {id_ for report in aborting for id_ in report.aborted} == ids
    assert {id_ for report in deleting for id_ in report.deleted} == ids
    assert await events_of(world, both[0].index_id) == [111] * 5 + [114] * 5 + [116] * 5
    assert await pending(world) == []


async def test_aborted_workflow_cannot_be_committed(coordinator: Coordinator, clock: FakeClock) -> None:
    id_ = await summarized(coordinator)
    clock.advance(ACTIVE_FOR * 2)
    await coordinator.expire()

    for _ in range(2):
        with pytest.raises(WorkflowAbortedError, match="104 expired"):
            await coordinator.commit(id_)
    assert (await coordinator.get(id_)).code == EXPIRED


async def test_workflow_that_fails_does_not_keep_the_others(
    coordinator: Coordinator, world: World, clock: FakeClock
) -> None:
    ids = [(await coordinator.begin()).workflow_id for _ in range(3)]
    await world.other_journal().commit(
        ids[1], [NewEvent.of(Message(event=Message.EV_SNAPSHOT_BEGIN))], RETRY_NO_VC
    )
    clock.advance(ACTIVE_FOR * 2)

    report = await coordinator.expire()

    assert set(report.aborted) == {ids[0], ids[2]}
    assert [id_ for id_, _ in report.failures] == [ids[1]]


async def test_index_of_many_short_workflows_is_written_anew(coordinator: Coordinator, world: World) -> None:
    journal = world.other_journal()
    started, completed, deleted = (
        Message.EV_FSO_PING_REGISTRY_STARTED,
        Message.EV_FSO_PING_REGISTRY_COMPLETED,
        Message.EV_FSO_PING_REGISTRY_DELETED,
    )
    messages = [
        NewEvent.of(
            Message(event=event, workflow_id=UUID(int=number).bytes, workflow_event_id=bytes(15) + b"1")
        )
        for number in range(334)
        for event in (started, completed, deleted)
    ]
    for start in range(0, len(messages), 30):
        await journal.commit(coordinator.index_id, messages[start : start + 30], RETRY_NO_VC)

    assert (await coordinator.expire()).snapshot
    assert not (await coordinator.expire()).snapshot
    assert (await coordinator.index.find(coordinator.index_id)).events_since_snapshot == 0
