"""The index of workflows: what can be repeated, and when a snapshot is worth it."""

from __future__ import annotations

import random
from uuid import UUID, uuid4

import attrs
import pytest

from hsm.aggregate import Command, Event
from hsm.components.ping_registry import (
    MAX_SNAPSHOT_WORKFLOWS,
    BeginWorkflow,
    CommitWorkflow,
    DeleteWorkflow,
    EventTypeError,
    IndexBehavior,
    IndexCommand,
    IndexState,
    InvalidCommandError,
    SmallStorageReductionError,
    Snapshot,
    SnapshotBegan,
    SnapshotEnded,
    SnapshotTaken,
    TooManyWorkflowsError,
    UnknownWorkflowError,
    WorkflowIndex,
)
from persistence.journal import EPOCH, NO_VC, EventId, EventIdSource, NewEvent
from persistence.proto.nogevents_pb2 import Event as Message
from tests.support.journals import World

IDS = EventIdSource()
BEHAVIOR = IndexBehavior()


@pytest.fixture
def index(world: World) -> WorkflowIndex:
    return WorkflowIndex(world.journal())


@pytest.fixture
def id_() -> UUID:
    return uuid4()


async def events(world: World, id_: UUID) -> list[int]:
    return [event.message().event async for event in world.other_journal().find(id_)]


async def test_begin_commit_and_delete_are_told_by_the_numbers_of_the_schema(
    index: WorkflowIndex, world: World, id_: UUID
) -> None:
    workflow, began, completed = uuid4(), IDS.new(), IDS.new()
    await index.begin(id_, workflow, began)
    await index.commit(id_, workflow, completed)
    await index.delete(id_, workflow)

    messages = [event.message() async for event in world.journal().find(id_)]
    assert [message.event for message in messages] == [111, 114, 116]
    assert [message.workflow_id for message in messages] == [workflow.bytes] * 3
    assert [message.workflow_event_id for message in messages] == [began, completed, b""]
    assert not any(message.registry_id for message in messages)


async def test_begin_of_an_active_workflow_changes_nothing(index: WorkflowIndex, id_: UUID) -> None:
    workflow = uuid4()
    vid = await index.begin(id_, workflow, IDS.new())

    assert await index.begin(id_, workflow, IDS.new()) == vid
    assert set((await index.find(id_)).active) == {workflow}


async def test_commit_of_a_completed_workflow_changes_nothing_also_after_others(
    index: WorkflowIndex, id_: UUID
) -> None:
    first, second = uuid4(), uuid4()
    await index.begin(id_, first, IDS.new())
    vid = await index.commit(id_, first, IDS.new())
    assert await index.commit(id_, first, IDS.new()) == vid
    await index.begin(id_, second, IDS.new())
    vid = await index.commit(id_, second, IDS.new())

    assert await index.commit(id_, first, IDS.new()) == vid
    assert await index.begin(id_, first, IDS.new()) == vid
    state = await index.find(id_)
    assert (set(state.active), set(state.completed)) == (set(), {first, second})


async def test_commit_of_the_last_one_committed_changes_nothing_after_its_deletion(
    index: WorkflowIndex, world: World, id_: UUID
) -> None:
    workflow = uuid4()
    await index.begin(id_, workflow, IDS.new())
    await index.commit(id_, workflow, IDS.new())
    vid = await index.delete(id_, workflow)
    assert await index.commit(id_, workflow, IDS.new()) == vid
    vid = await index.snapshot(id_)

    # Rebuilt from the snapshot, too.
    assert await WorkflowIndex(world.other_journal()).commit(id_, workflow, IDS.new()) == vid


async def test_unknown_workflows_are_told(index: WorkflowIndex, id_: UUID) -> None:
    workflow = uuid4()
    with pytest.raises(UnknownWorkflowError):
        await index.commit(id_, workflow, IDS.new())
    with pytest.raises(UnknownWorkflowError):
        await index.delete(id_, workflow)
    await index.begin(id_, workflow, IDS.new())
    with pytest.raises(UnknownWorkflowError):
        await index.delete(id_, workflow)
    await index.commit(id_, workflow, IDS.new())
    await index.delete(id_, workflow)
    with pytest.raises(UnknownWorkflowError):
        await index.delete(id_, workflow)


async def test_index_without_history_is_empty(index: WorkflowIndex, id_: UUID) -> None:
    state = await index.find(id_)

    assert (state.vid, dict(state.active), dict(state.completed)) == (EPOCH, {}, {})
    assert await index.snapshot(id_) == EPOCH


async def test_snapshot_tells_the_same_in_one_commit(index: WorkflowIndex, world: World, id_: UUID) -> None:
    workflows = [uuid4() for _ in range(5)]
    for workflow in workflows:
        await index.begin(id_, workflow, IDS.new())
    await index.commit(id_, workflows[0], IDS.new())
    before = await index.find(id_)
    writes = world.faulty.writes

    vid = await index.snapshot(id_)

    assert world.faulty.writes == writes + 1
    assert (await events(world, id_))[-3:] == [141, 92, 142]
    for each in (index, WorkflowIndex(world.other_journal())):
        after = await each.find(id_)
        assert after == attrs.evolve(before, vid=vid, events_since_snapshot=0)
    tail = [event.message() async for event in world.journal().find(id_)][-2].workflow_index_state
    started = [row.started_workflow_event_id for row in tail.ping_registry]
    assert started == sorted(started)
    assert [bool(row.completed_workflow_event_id) for row in tail.ping_registry] == [True] + [False] * 4


async def test_snapshot_of_an_empty_list_has_no_lines(index: WorkflowIndex, world: World, id_: UUID) -> None:
    await index.snapshot(id_)
    workflow = uuid4()
    await index.begin(id_, workflow, IDS.new())
    vid = await index.snapshot(id_)

    assert await index.snapshot(id_) == vid


async def test_snapshot_checks_the_version(index: WorkflowIndex, id_: UUID) -> None:
    vid = await index.begin(id_, uuid4(), IDS.new())
    await index.begin(id_, uuid4(), IDS.new())

    with pytest.raises(Exception, match="version"):
        await index.snapshot(id_, vid)


@pytest.mark.parametrize(
    "message",
    [
        Message(event=Message.EV_FSO_SERVER_PINGED),
        Message(event=Message.EV_FSO_PING_REGISTRY_COMMITTED),
        Message(event=Message.EV_FSO_PING_REGISTRY_STARTED, registry_id=bytes(16)),
        Message(
            event=Message.EV_FSO_PING_REGISTRY_STARTED, workflow_id=bytes(16), workflow_event_id=b"short"
        ),
    ],
)
async def test_history_of_something_else_is_refused(
    index: WorkflowIndex, world: World, id_: UUID, message: Message
) -> None:
    await world.journal().commit(id_, [NewEvent.of(message)], NO_VC)

    with pytest.raises(EventTypeError):
        await index.find(id_)


# Without a journal


def advanced(state: IndexState, command: IndexCommand) -> IndexState:
    advancer = BEHAVIOR.new_advancer()
    for fact in BEHAVIOR.tell(state, command):
        state = advancer.advance(state, Event(IDS.new(), BEHAVIOR.new_event(BEHAVIOR.new_message(fact))))
    return state


def index_of(active: int, completed: int, count: int) -> IndexState:
    state = IndexState(uuid4())
    ids = [uuid4() for _ in range(active + completed)]
    for id_ in ids:
        state = advanced(state, BeginWorkflow(id_, IDS.new()))
    for id_ in ids[:completed]:
        state = advanced(state, CommitWorkflow(id_, IDS.new()))
    return attrs.evolve(state, events_since_snapshot=count)


@pytest.mark.parametrize(
    ("workflows", "count", "worth"),
    [
        (0, 999, False),
        (0, 1000, True),
        (2, 999, False),
        (2, 1000, True),
        (3, 1199, False),
        (3, 1200, False),  # costs as much
        (3, 1201, True),
        (200, 60_300, False),  # costs as much
        (200, 60_301, True),
    ],
)
def test_snapshot_has_to_be_worth_it_if_that_is_asked(workflows: int, count: int, worth: bool) -> None:
    state = index_of(workflows - workflows // 2, workflows // 2, count)

    if worth:
        assert advanced(state, Snapshot(if_storage_reduction=True)).events_since_snapshot == 0
    else:
        with pytest.raises(SmallStorageReductionError):
            BEHAVIOR.tell(state, Snapshot(if_storage_reduction=True))
        assert BEHAVIOR.tell(state, Snapshot())


@pytest.mark.parametrize("flag", [True, False])
def test_snapshot_holds_two_hundred_workflows(flag: bool) -> None:
    full = index_of(MAX_SNAPSHOT_WORKFLOWS - 50, 50, 100_000)
    over = index_of(MAX_SNAPSHOT_WORKFLOWS - 50, 51, 100_000)

    assert len(BEHAVIOR.tell(full, Snapshot(flag))) == 3
    with pytest.raises(TooManyWorkflowsError, match="201"):
        BEHAVIOR.tell(over, Snapshot(flag))


def test_nothing_since_the_last_snapshot_is_nothing_to_do() -> None:
    state = index_of(201, 0, 0)

    assert BEHAVIOR.tell(state, Snapshot(if_storage_reduction=True)) == ()


def test_empty_snapshot_has_no_lines() -> None:
    assert BEHAVIOR.tell(index_of(0, 0, 5), Snapshot()) == (SnapshotBegan(), SnapshotEnded())


def test_snapshot_forgets_what_it_does_not_list() -> None:
    state = index_of(2, 2, 9)
    advancer = BEHAVIOR.new_advancer()
    kept = next(iter(state.active.values()))
    for fact in (SnapshotBegan(), SnapshotTaken((kept,)), SnapshotEnded()):
        state = advancer.advance(state, Event(IDS.new(), fact))

    assert (list(state.active.values()), dict(state.completed)) == ([kept], {})


def test_other_command_is_refused() -> None:
    class Nonsense(Command):
        pass

    with pytest.raises(InvalidCommandError, match="Nonsense"):
        BEHAVIOR.tell(IndexState(uuid4()), Nonsense())  # type: ignore[arg-type]  # what is refused


def test_state_that_was_given_out_never_changes() -> None:
    chance = random.Random(5)
    state = IndexState(uuid4())
    seen: list[tuple[IndexState, IndexState]] = []
    for _ in range(200):
        state = advanced(state, any_command(chance, state))
        copy = attrs.evolve(state, active=dict(state.active), completed=dict(state.completed))
        seen.append((state, copy))

    assert all(state == copy for state, copy in seen)


def any_command(chance: random.Random, state: IndexState) -> IndexCommand:
    choices: list[IndexCommand] = [BeginWorkflow(uuid4(), IDS.new()), Snapshot()]
    choices += [CommitWorkflow(id_, EventId(IDS.new())) for id_ in list(state.active)[:2]]
    choices += [DeleteWorkflow(id_) for id_ in list(state.completed)[:2]]
    return chance.choice(choices)
