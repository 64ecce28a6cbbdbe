"""The callback's state table: what moves it, what it asks for, and when its tasks are stale."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from hsm import (
    ExecutionKey,
    ImmediateKind,
    InvalidTaskKindError,
    InvalidTransitionError,
    Node,
    OutboundKind,
    Ref,
    Registry,
    SerializationError,
    StaleReferenceError,
    Task,
    TimerKind,
    VersionedTransition,
)
from hsm.components import callback as callbacks
from hsm.components.callback import (
    AttemptFailed,
    Backoff,
    Callback,
    CallbackDefinition,
    Failed,
    Failure,
    Invocation,
    Refused,
    Request,
    Rescheduled,
    Scheduled,
    State,
    Succeeded,
)
from hsm.components.callback.machine import BackoffSerializer, InvocationSerializer
from hsm.machine import Lifecycle
from persistence.proto.callback_pb2 import CallbackInfo

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
RETRYABLE = Failure("busy", "HTTP 503")
FINAL = Failure("gone", "HTTP 410", retryable=False)
PAUSE = timedelta(seconds=7)
REF = Ref(ExecutionKey("test", "1"))

EVENTS: dict[str, Callable[[Node], None]] = {
    "scheduled": lambda node: node.apply(callbacks.scheduled, Scheduled()),
    "attempt_failed": lambda node: node.apply(callbacks.attempt_failed, AttemptFailed(NOW, RETRYABLE, PAUSE)),
    "rescheduled": lambda node: node.apply(callbacks.rescheduled, Rescheduled()),
    "failed": lambda node: node.apply(callbacks.failed, Failed(NOW, FINAL)),
    "succeeded": lambda node: node.apply(callbacks.succeeded, Succeeded(NOW)),
}
TABLE = {
    (State.STANDBY, "scheduled"): State.SCHEDULED,
    (State.SCHEDULED, "attempt_failed"): State.BACKING_OFF,
    (State.BACKING_OFF, "rescheduled"): State.SCHEDULED,
    (State.SCHEDULED, "failed"): State.FAILED,
    (State.SCHEDULED, "succeeded"): State.SUCCEEDED,
}
WAY_TO = {
    State.STANDBY: (),
    State.SCHEDULED: ("scheduled",),
    State.BACKING_OFF: ("scheduled", "attempt_failed"),
    State.FAILED: ("scheduled", "failed"),
    State.SUCCEEDED: ("scheduled", "succeeded"),
}


async def never_sent(_: Request) -> callbacks.Outcome:
    return Refused("the test sends nothing")


@pytest.fixture
def registry() -> Registry:
    registry = Registry(debug=True)
    callbacks.register(registry, never_sent)
    return registry


def node_in(registry: Registry, state: State) -> Node:
    data = Callback.new(Request("https://example.org/hook"), request_id="r", max_attempts=3)
    node = Node.new_root(registry, callbacks.CALLBACK.id, data, version=VersionedTransition(0, 1))
    for event in WAY_TO[state]:
        EVENTS[event](node)
    node.clear_transaction_state()
    return node


def tasks_of(node: Node) -> list[Task]:
    return [task for entry in node.outputs() for output in entry.outputs for task in output.tasks]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_moves_as_the_table_says_and_no_other_way(registry: Registry, state: State, event: str) -> None:
    node = node_in(registry, state)
    expected = TABLE.get((state, event))
    if expected is None:
        with pytest.raises(InvalidTransitionError):
            EVENTS[event](node)
        assert node.data(Callback).state is state
    else:
        EVENTS[event](node)
        assert node.data(Callback).state is expected


def test_first_attempt_is_counted_when_it_is_scheduled(registry: Registry) -> None:
    node = node_in(registry, State.STANDBY)
    assert node.data(Callback).attempt == 0
    EVENTS["scheduled"](node)
    assert node.data(Callback).attempt == 1
    assert tasks_of(node) == [Invocation("https://example.org", 1)]


def test_failed_attempt_asks_for_a_timer_at_the_end_of_the_pause(registry: Registry) -> None:
    node = node_in(registry, State.SCHEDULED)
    EVENTS["attempt_failed"](node)
    data = node.data(Callback)
    assert (data.attempt, data.last_failure) == (1, RETRYABLE)
    assert (data.last_attempt_complete_time, data.next_attempt_time) == (NOW, NOW + PAUSE)
    assert tasks_of(node) == [Backoff(NOW + PAUSE, 1)]


def test_next_attempt_keeps_the_last_failure_to_be_seen(registry: Registry) -> None:
    node = node_in(registry, State.BACKING_OFF)
    EVENTS["rescheduled"](node)
    data = node.data(Callback)
    assert (data.attempt, data.next_attempt_time, data.last_failure) == (2, None, RETRYABLE)
    assert data.last_attempt_complete_time == NOW
    assert tasks_of(node) == [Invocation("https://example.org", 2)]


def test_success_clears_the_failure_and_asks_for_nothing(registry: Registry) -> None:
    node = node_in(registry, State.BACKING_OFF)
    EVENTS["rescheduled"](node)
    node.clear_transaction_state()
    EVENTS["succeeded"](node)
    data = node.data(Callback)
    assert (data.last_failure, data.last_attempt_complete_time, tasks_of(node)) == (None, NOW, [])
    assert data.lifecycle is Lifecycle.COMPLETED


def test_failure_for_good_is_kept_and_asks_for_nothing(registry: Registry) -> None:
    node = node_in(registry, State.SCHEDULED)
    EVENTS["failed"](node)
    data = node.data(Callback)
    assert (data.last_failure, tasks_of(node), data.lifecycle) == (FINAL, [], Lifecycle.FAILED)


@pytest.mark.parametrize("state", [State.STANDBY, State.SCHEDULED, State.BACKING_OFF])
def test_unfinished_callback_is_running(registry: Registry, state: State) -> None:
    assert node_in(registry, state).data(Callback).lifecycle is Lifecycle.RUNNING


@pytest.mark.parametrize("state", State)
def test_regenerates_the_task_of_its_state(registry: Registry, state: State) -> None:
    node = node_in(registry, state)
    expected = {
        State.SCHEDULED: [Invocation("https://example.org", 1)],
        State.BACKING_OFF: [Backoff(NOW + PAUSE, 1)],
    }
    assert list(node.data(Callback).regenerate_tasks(node)) == expected.get(state, [])


@pytest.mark.parametrize("attempt", [0, 1, 2])
@pytest.mark.parametrize("state", State)
def test_task_is_valid_in_its_state_at_its_attempt_only(
    registry: Registry, state: State, attempt: int
) -> None:
    node = node_in(registry, state)
    tasks: dict[State, Invocation | Backoff] = {
        State.SCHEDULED: Invocation("https://example.org", attempt),
        State.BACKING_OFF: Backoff(NOW, attempt),
    }
    for own_state, task in tasks.items():
        if state is own_state and attempt == 1:
            task.validate(REF, node)
        else:
            with pytest.raises(StaleReferenceError):
                task.validate(REF, node)


def callback_at(state: State, attempt: int) -> Callback:
    return Callback(CallbackInfo(state=state.value, attempt=attempt))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ((State.STANDBY, 0), (State.SCHEDULED, 1)),
        ((State.SCHEDULED, 1), (State.BACKING_OFF, 1)),
        ((State.BACKING_OFF, 1), (State.SCHEDULED, 2)),
        ((State.SCHEDULED, 2), (State.BACKING_OFF, 2)),
        ((State.BACKING_OFF, 7), (State.SUCCEEDED, 1)),
        ((State.SCHEDULED, 7), (State.FAILED, 1)),
    ],
)
def test_compares_by_stage_and_then_by_attempt(older: tuple[State, int], newer: tuple[State, int]) -> None:
    a, b = callback_at(*older), callback_at(*newer)
    assert CallbackDefinition.compare(a, b) < 0
    assert CallbackDefinition.compare(b, a) > 0
    assert CallbackDefinition.compare(a, a) == CallbackDefinition.compare(b, b) == 0


def test_two_ends_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="both SUCCEEDED and FAILED"):
        CallbackDefinition.compare(callback_at(State.SUCCEEDED, 1), callback_at(State.FAILED, 1))


def test_comes_back_from_bytes_as_it_was() -> None:
    request = Request(
        "https://user:secret@example.org/ü", "PUT", {"X-A": "b"}, b"\0body", timedelta(seconds=3)
    )
    data = Callback.new(request, request_id="key", max_attempts=5, registration_time=NOW)
    data.state = State.SCHEDULED
    restored = CallbackDefinition.deserialize(CallbackDefinition.serialize(data))
    assert restored.message == data.message
    assert restored.state is State.SCHEDULED
    expected = Request(request.url, "PUT", {"X-A": "b", "Idempotency-Key": "key"}, b"\0body", request.timeout)
    assert restored.request == expected
    assert "secret" not in str(restored)


def test_request_id_of_the_request_itself_wins() -> None:
    request = Request("https://example.org", headers={"idempotency-key": "mine"})
    assert Callback.new(request, request_id="ours").request.headers == {"idempotency-key": "mine"}


def test_callback_without_additions_has_the_defaults() -> None:
    message = CallbackInfo(state=State.SCHEDULED.value, attempt=1)
    message.callback.nexus.url = "http://example.org"
    data = Callback(message)
    assert data.request == Request("http://example.org")
    assert not data.exhausted


@pytest.mark.parametrize("data", [b"", b"\x20\x06", b"\xff"])
def test_unknown_state_and_foreign_bytes_are_told(registry: Registry, data: bytes) -> None:
    node = node_in(registry, State.STANDBY).to_proto()
    node.data = data
    restored = Node.from_proto(registry, callbacks.CALLBACK.id, node)
    with pytest.raises(SerializationError, match=r"callbacks\.Callback|CallbackInfo"):
        restored.data(Callback)


def test_tasks_come_back_from_bytes_and_kind() -> None:
    invocation, backoff = Invocation("https://example.org", 3), Backoff(NOW, 4)
    data = InvocationSerializer.serialize(invocation)
    assert InvocationSerializer.deserialize(data, OutboundKind("https://example.org")) == invocation
    data = BackoffSerializer.serialize(backoff)
    assert BackoffSerializer.deserialize(data, TimerKind(NOW)) == backoff


def test_tasks_of_another_kind_are_refused() -> None:
    with pytest.raises(InvalidTaskKindError):
        InvocationSerializer.deserialize(b"", TimerKind(NOW))
    with pytest.raises(InvalidTaskKindError):
        BackoffSerializer.deserialize(b"", ImmediateKind())
