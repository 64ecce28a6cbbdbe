"""Every cell of the workflow's table: what each command comes to in each state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID, uuid4

import pytest

from hsm.components.ping_registry import (
    EXPIRED,
    ArgumentNotIdempotentError,
    EventTypeError,
    Init,
    JournalError,
    NewEventsError,
    PingRegistryError,
    StateCode,
    StateConflictError,
    UninitializedError,
    Workflows,
)
from persistence.journal import EPOCH, NO_VC, RETRY_NO_VC, NewEvent, VersionConflictError
from persistence.proto.nogevents_pb2 import Event as Message
from tests.support.journals import World

REGISTRY: Final = UUID(int=7)

Step = Callable[[Workflows, UUID], Awaitable[object]]

COMMANDS: Final[dict[str, Step]] = {
    "Init": lambda workflows, id_: workflows.init(id_, Init(REGISTRY)),
    "InitOther": lambda workflows, id_: workflows.init(id_, Init(UUID(int=8))),
    "InitOtherServers": lambda workflows, id_: workflows.init(id_, Init(REGISTRY, ("a",))),
    "AppendPing": lambda workflows, id_: workflows.append_ping(id_, NO_VC, 2, "ping"),
    "PostSummary": lambda workflows, id_: workflows.post_summary(id_, NO_VC, 1, "summary"),
    "Commit": lambda workflows, id_: workflows.commit(id_, NO_VC),
    "AbortExpired": lambda workflows, id_: workflows.abort_expired(id_, NO_VC),
    "End": lambda workflows, id_: workflows.end(id_, NO_VC),
    "Delete": lambda workflows, id_: workflows.delete(id_, NO_VC),
}

# How each state is reached.
STATES: Final[dict[StateCode, tuple[str, ...]]] = {
    StateCode.UNINITIALIZED: (),
    StateCode.INITIALIZED: ("Init",),
    StateCode.APPENDING: ("Init", "AppendPing"),
    StateCode.SUMMARIZED: ("Init", "AppendPing", "PostSummary"),
    StateCode.COMPLETED: ("Init", "AppendPing", "PostSummary", "Commit"),
    StateCode.TERMINATED: ("Init", "AppendPing", "PostSummary", "Commit", "End"),
}

STARTED, PINGED, GATHERED, COMPLETED, COMMITTED = 111, 112, 113, 114, 115
OK: Final = None  # success without an event
CONFLICT: Final = StateConflictError
OTHER: Final = ArgumentNotIdempotentError

# One column a state, in the order of STATES: an event, success without one, or an error.
TABLE: Final[dict[str, tuple[int | type[PingRegistryError] | None, ...]]] = {
    "Init": (STARTED, OK, CONFLICT, CONFLICT, CONFLICT, CONFLICT),
    "InitOther": (STARTED, OTHER, CONFLICT, CONFLICT, CONFLICT, CONFLICT),
    "InitOtherServers": (STARTED, OTHER, CONFLICT, CONFLICT, CONFLICT, CONFLICT),
    "AppendPing": (CONFLICT, PINGED, PINGED, CONFLICT, CONFLICT, CONFLICT),
    "PostSummary": (CONFLICT, GATHERED, GATHERED, CONFLICT, CONFLICT, CONFLICT),
    "Commit": (CONFLICT, CONFLICT, CONFLICT, COMPLETED, OK, CONFLICT),
    "AbortExpired": (CONFLICT, COMPLETED, COMPLETED, COMPLETED, OK, OK),
    "End": (CONFLICT, CONFLICT, CONFLICT, CONFLICT, COMMITTED, OK),
    "Delete": (OK, CONFLICT, CONFLICT, CONFLICT, OK, OK),
}
CELLS: Final = [
    pytest.param(command, state, outcome, id=f"{command}-{state.name}")
    for command, row in TABLE.items()
    for state, outcome in zip(STATES, row, strict=True)
]


@pytest.fixture
def workflows(world: World) -> Workflows:
    return Workflows(world.journal())


async def brought_to(workflows: Workflows, state: StateCode) -> UUID:
    id_ = uuid4()
    for command in STATES[state]:
        await COMMANDS[command](workflows, id_)
    return id_


@pytest.mark.parametrize(("command", "state", "outcome"), CELLS)
async def test_cell(
    workflows: Workflows,
    world: World,
    command: str,
    state: StateCode,
    outcome: int | type[PingRegistryError] | None,
) -> None:
    id_ = await brought_to(workflows, state)
    journal = world.other_journal()
    before = await journal.head(id_)
    if state is not StateCode.UNINITIALIZED:
        assert (await workflows.find(id_)).state_code is state

    if isinstance(outcome, type):
        with pytest.raises(outcome):
            await COMMANDS[command](workflows, id_)
        assert await journal.head(id_) == before
        return
    answer = await COMMANDS[command](workflows, id_)

    events = [event async for event in journal.find(id_)]
    if command == "Delete":
        assert (await journal.head(id_), events) == (EPOCH, [])
    elif outcome is None:
        assert answer == before == events[-1].id
    else:
        assert answer == events[-1].id
        assert events[-1].parent == before
        assert Message.FromString(events[-1].data).event == outcome


def test_table_names_every_command_and_state() -> None:
    assert set(STATES) == set(StateCode)
    assert len(CELLS) == len(COMMANDS) * len(StateCode)


async def test_whole_life_is_told_by_the_numbers_of_the_schema(workflows: Workflows, world: World) -> None:
    id_ = await brought_to(workflows, StateCode.TERMINATED)

    messages = [event.message() async for event in world.journal().find(id_)]

    assert [message.event for message in messages] == [STARTED, PINGED, GATHERED, COMPLETED, COMMITTED]
    started, pinged, gathered, completed, _ = messages
    assert started.registry_id == REGISTRY.bytes
    assert not started.workflow_id
    assert not started.workflow_event_id
    assert (pinged.status_code, pinged.status_message) == (2, "ping")
    assert (gathered.status_code, gathered.status_message) == (1, "summary")
    assert (completed.status_code, completed.status_message) == (0, "")


async def test_state_tells_what_has_happened(workflows: Workflows, world: World) -> None:
    id_ = uuid4()
    started = await workflows.init(id_, Init(REGISTRY, ("a", "b"), "begin"))
    pinged = await workflows.append_ping(id_, started, 0, "here", sender="a", request_id="1")
    summarized = await workflows.post_summary(id_, pinged, 1, "one is missing")

    for each in (workflows, Workflows(world.other_journal())):
        state = await each.find(id_)
        assert (state.id, state.vid, state.state_code) == (id_, summarized, StateCode.SUMMARIZED)
        assert (state.registry_id, state.expected_servers, state.num_pings) == (REGISTRY, ("a", "b"), 1)
        assert state.silent_servers == ("b",)
        (ping,) = state.pings
        assert (ping.code, ping.message, ping.sender, ping.event_id) == (0, "here", "a", pinged)
        status = state.summary_status
        assert (status.code, status.message, status.event_id) == (1, "one is missing", summarized)
        assert not state.aborted


@pytest.mark.parametrize(
    "state", [StateCode.INITIALIZED, StateCode.APPENDING, StateCode.SUMMARIZED], ids=lambda state: state.name
)
async def test_abort_is_told_by_code_and_message(workflows: Workflows, state: StateCode) -> None:
    id_ = await brought_to(workflows, state)

    vid = await workflows.abort_expired(id_, NO_VC)

    found = await workflows.find(id_)
    status = found.summary_status
    assert found.aborted
    assert (status.code, status.message, status.event_id) == (EXPIRED, "expired", vid)


# Requests


async def test_ping_of_a_request_is_noted_once(workflows: Workflows) -> None:
    id_ = uuid4()
    vid = await workflows.init(id_, Init(REGISTRY))
    first = await workflows.append_ping(id_, vid, 0, "here", sender="a", request_id="1")
    again = await workflows.append_ping(id_, vid, 0, "here", sender="a", request_id="1")
    other = await workflows.append_ping(id_, RETRY_NO_VC, 0, "here", sender="b", request_id="1")
    await workflows.append_ping(id_, RETRY_NO_VC, 0, "here", sender="b", request_id="2")

    assert first == again != other
    assert [(ping.sender, ping.request_id) for ping in (await workflows.find(id_)).pings] == [
        ("a", "1"),
        ("b", "1"),
        ("b", "2"),
    ]
    with pytest.raises(ArgumentNotIdempotentError, match="Code"):
        await workflows.append_ping(id_, NO_VC, 1, "here", sender="a", request_id="1")
    with pytest.raises(ArgumentNotIdempotentError, match="Message"):
        await workflows.append_ping(id_, NO_VC, 0, "gone", sender="a", request_id="1")


@pytest.mark.parametrize(
    "state", [state for state in StateCode if state.value > 1], ids=lambda state: state.name
)
async def test_request_can_be_repeated_in_every_later_state(workflows: Workflows, state: StateCode) -> None:
    id_ = uuid4()
    steps: list[Step] = [
        lambda workflows, id_: workflows.init(id_, Init(REGISTRY, ("a",), "r")),
        lambda workflows, id_: workflows.append_ping(id_, RETRY_NO_VC, 0, "x", sender="a", request_id="r"),
        lambda workflows, id_: workflows.post_summary(id_, NO_VC, 0, "x", request_id="r"),
        lambda workflows, id_: workflows.commit(id_, NO_VC, request_id="r"),
        lambda workflows, id_: workflows.end(id_, NO_VC),
    ]
    for step in steps[: state.value]:
        await step(workflows, id_)
    vid = (await workflows.find(id_)).vid

    for step in steps[: state.value]:
        await step(workflows, id_)

    assert (await workflows.find(id_)).vid == vid


@pytest.mark.parametrize("argument", ["RegistryId", "ExpectedServers"])
async def test_repeated_start_has_to_be_the_same(workflows: Workflows, argument: str) -> None:
    id_ = uuid4()
    await workflows.init(id_, Init(REGISTRY, ("a",), "r"))
    await workflows.append_ping(id_, NO_VC, 0, "x")
    other = Init(UUID(int=8), ("a",), "r") if argument == "RegistryId" else Init(REGISTRY, (), "r")

    with pytest.raises(ArgumentNotIdempotentError, match=argument):
        await workflows.init(id_, other)
    with pytest.raises(StateConflictError):
        await workflows.init(id_, Init(REGISTRY, ("a",), "another"))


async def test_repeated_summary_has_to_be_the_same(workflows: Workflows) -> None:
    id_ = await brought_to(workflows, StateCode.APPENDING)
    await workflows.post_summary(id_, NO_VC, 0, "x", request_id="r")

    with pytest.raises(ArgumentNotIdempotentError, match="Message"):
        await workflows.post_summary(id_, NO_VC, 0, "y", request_id="r")
    with pytest.raises(StateConflictError):
        await workflows.post_summary(id_, NO_VC, 0, "x", request_id="another")


async def test_fifty_pings_at_once_from_each_of_two_processes_end_in_one_chain(
    workflows: Workflows, world: World
) -> None:
    id_ = await brought_to(workflows, StateCode.INITIALIZED)
    both = (workflows, Workflows(world.other_journal()))

    vids = await asyncio.gather(
        *[
            each.append_ping(id_, RETRY_NO_VC, 0, "x", sender=f"s{side}", request_id=str(number))
            for number in range(50)
            for side, each in enumerate(both)
        ]
    )

    state = await workflows.find(id_)
    assert len(set(vids)) == state.num_pings == 100
    assert [ping.event_id for ping in state.pings] == sorted(vids)
    assert len({(ping.sender, ping.request_id) for ping in state.pings}) == 100


# Errors


async def test_conflict_of_versions_is_an_error_of_the_package(workflows: Workflows) -> None:
    id_ = uuid4()
    vid = await workflows.init(id_, Init(REGISTRY))
    await workflows.append_ping(id_, vid, 0, "x")

    with pytest.raises(JournalError) as caught:
        await workflows.append_ping(id_, vid, 0, "x")
    assert isinstance(caught.value, PingRegistryError)
    assert isinstance(caught.value.__cause__, VersionConflictError)


async def test_workflow_that_is_not_there_is_told(workflows: Workflows) -> None:
    with pytest.raises(UninitializedError):
        await workflows.find(uuid4())


async def test_code_that_no_event_can_hold_is_told(workflows: Workflows) -> None:
    id_ = await brought_to(workflows, StateCode.INITIALIZED)

    with pytest.raises(NewEventsError):
        await workflows.append_ping(id_, NO_VC, 2**31, "x")


@pytest.mark.parametrize(
    "message",
    [
        Message(event=Message.EV_NAMED, type_name="opened"),
        Message(event=Message.EV_SNAPSHOT_BEGIN),
        Message(
            event=Message.EV_FSO_PING_REGISTRY_STARTED, workflow_id=bytes(16), workflow_event_id=bytes(16)
        ),
        Message(event=Message.EV_FSO_PING_REGISTRY_STARTED, registry_id=b"short"),
        Message(event=Message.EV_FSO_PING_REGISTRY_COMPLETED, workflow_id=bytes(16)),
        Message(event=Message.EV_FSO_PING_REGISTRY_DELETED),
    ],
)
async def test_history_of_something_else_is_refused(
    workflows: Workflows, world: World, message: Message
) -> None:
    id_ = uuid4()
    await world.journal().commit(id_, [NewEvent.of(message)], NO_VC)

    with pytest.raises(EventTypeError):
        await workflows.find(id_)
