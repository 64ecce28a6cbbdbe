"""The callback: its data, its states and its two tasks."""

from __future__ import annotations

import builtins
import enum
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final

import attrs
from google.protobuf.message import DecodeError

from hsm.components.callback.request import DEFAULT_TIMEOUT, Request, destination_of
from hsm.errors import InvalidTaskKindError, SerializationError, StaleReferenceError
from hsm.machine import Lifecycle, MachineType
from hsm.ref import Ref
from hsm.task import OutboundKind, Task, TaskKind, TaskType, TimerKind
from hsm.tree import Node
from persistence.proto.callback_pb2 import CallbackInfo, CallbackState, CallbackTask

__all__ = [
    "BACKOFF",
    "CALLBACK",
    "INVOCATION",
    "Backoff",
    "BackoffSerializer",
    "Callback",
    "CallbackDefinition",
    "Failure",
    "Invocation",
    "InvocationSerializer",
    "State",
]

CALLBACK: Final = MachineType(1001, "callbacks.Callback")
INVOCATION: Final = TaskType(1001, "callbacks.Invocation")
BACKOFF: Final = TaskType(1002, "callbacks.Backoff")

REQUEST_ID_HEADER: Final = "Idempotency-Key"
_CREDENTIALS: Final = re.compile(r"//[^/?#]*@")
_MICROSECOND: Final = timedelta(microseconds=1)


class State(enum.Enum):
    """Where a callback stands."""

    STANDBY = CallbackState.CALLBACK_STATE_STANDBY
    SCHEDULED = CallbackState.CALLBACK_STATE_SCHEDULED
    BACKING_OFF = CallbackState.CALLBACK_STATE_BACKING_OFF
    FAILED = CallbackState.CALLBACK_STATE_FAILED
    SUCCEEDED = CallbackState.CALLBACK_STATE_SUCCEEDED


_LIFECYCLES: Final = {State.SUCCEEDED: Lifecycle.COMPLETED, State.FAILED: Lifecycle.FAILED}


@attrs.frozen
class Failure:
    """Why an attempt failed.

    Attributes:
        message: for people.
        type: a short name of the kind of failure.
        retryable: whether another attempt may help.
    """

    message: str
    type: str = ""
    retryable: bool = True


class Callback:
    """One request that is to reach its receiver: at least once, until it is confirmed or hopeless.

    Attributes:
        message: the persisted form.

    Semantics: Temporal `callbacks.Callback`; the attempt is counted when it is scheduled, and each task
    names the attempt it belongs to.
    """

    __slots__ = ("message", "state")

    def __init__(self, message: CallbackInfo) -> None:
        self.message: CallbackInfo = message
        self.state: State = State(message.state)

    @classmethod
    def new(
        cls,
        request: Request,
        *,
        request_id: str,
        max_attempts: int = 0,
        registration_time: datetime | None = None,
    ) -> Callback:
        """A callback that waits to be scheduled.

        Args:
            request: what is sent.
            request_id: sent as the header `Idempotency-Key`, unless the request has one of its own.
            max_attempts: attempts before it has failed for good; 0 is no end.
            registration_time: when it was asked for.
        """
        message = CallbackInfo(
            state=State.STANDBY.value,
            request_id=request_id,
            method="" if request.method == "POST" else request.method,
            body=request.body,
            max_attempts=max_attempts,
            timeout_nanos=request.timeout // _MICROSECOND * 1000,
        )
        message.callback.nexus.url = request.url
        message.callback.nexus.header.update(request.headers)
        if registration_time is not None:
            message.registration_time.FromDatetime(registration_time)
        return cls(message)

    def __str__(self) -> str:
        attempts = f"attempt {self.attempt}"
        if self.max_attempts:
            attempts += f" of {self.max_attempts}"
        parts = [f"{self.method} {_CREDENTIALS.sub('//***@', self.url)}", attempts]
        if self.next_attempt_time is not None:
            parts.append(f"next try {self.next_attempt_time.isoformat(timespec='milliseconds')}")
        if self.last_failure is not None:
            parts.append(f"last failure: {self.last_failure.message}")
        return "; ".join(parts)

    @property
    def url(self) -> str:
        """Where it goes."""
        return self.message.callback.nexus.url

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.message.method or "POST"

    @property
    def attempt(self) -> int:
        """The attempt that is scheduled or was the last, from 1; 0 before the first."""
        return self.message.attempt

    @property
    def max_attempts(self) -> int:
        """Attempts before it has failed for good; 0 is no end."""
        return self.message.max_attempts

    @property
    def exhausted(self) -> bool:
        """Whether the present attempt is the last."""
        return 0 < self.message.max_attempts <= self.message.attempt

    @property
    def last_failure(self) -> Failure | None:
        """What the last attempt met; None if it succeeded or there was none."""
        if not self.message.HasField("last_attempt_failure"):
            return None
        failure = self.message.last_attempt_failure
        info = failure.application_failure_info
        return Failure(failure.message, info.type, not info.non_retryable)

    @property
    def last_attempt_complete_time(self) -> datetime | None:
        """When the last attempt ended."""
        message = self.message
        if not message.HasField("last_attempt_complete_time"):
            return None
        return message.last_attempt_complete_time.ToDatetime(UTC)

    @property
    def next_attempt_time(self) -> datetime | None:
        """When the next attempt is due, while it backs off."""
        message = self.message
        if not message.HasField("next_attempt_schedule_time"):
            return None
        return message.next_attempt_schedule_time.ToDatetime(UTC)

    @property
    def request(self) -> Request:
        """What the next attempt sends, the request id among the headers.

        Raises:
            InvalidRequestError: it was not checked before it was stored.
        """
        message = self.message
        headers = dict(message.callback.nexus.header)
        if message.request_id and not any(name.lower() == REQUEST_ID_HEADER.lower() for name in headers):
            headers[REQUEST_ID_HEADER] = message.request_id
        timeout = timedelta(microseconds=message.timeout_nanos // 1000) or DEFAULT_TIMEOUT
        return Request(message.callback.nexus.url, self.method, headers, message.body, timeout)

    @property
    def lifecycle(self) -> Lifecycle:
        """Through when it has succeeded or failed."""
        return _LIFECYCLES.get(self.state, Lifecycle.RUNNING)

    def regenerate_tasks(self, node: Node) -> Iterable[Task]:  # noqa: ARG002 - told from the data alone
        """The task of the present state."""
        if self.state is State.SCHEDULED:
            yield self.invocation()
        elif self.state is State.BACKING_OFF:
            yield self.backoff()

    def invocation(self) -> Invocation:
        """The task that makes the present attempt."""
        return Invocation(destination_of(self.url), self.attempt)

    def backoff(self) -> Backoff:
        """The timer that ends the present pause."""
        return Backoff(self.next_attempt_time or datetime.fromtimestamp(0, UTC), self.attempt)


def _require(node: Node, state: State, attempt: int) -> None:
    callback = node.data(Callback)
    if callback.state is not state or callback.attempt != attempt:
        raise StaleReferenceError(
            f"the task is for {state.name}, attempt {attempt},"
            f" the callback is {callback.state.name}, attempt {callback.attempt}"
        )


@attrs.frozen
class Invocation:
    """Makes one attempt."""

    type: ClassVar[TaskType] = INVOCATION
    destination: str
    attempt: int

    @property
    def kind(self) -> TaskKind:
        """Runs in the queue of its destination."""
        return OutboundKind(self.destination)

    def validate(self, ref: Ref, node: Node) -> None:  # noqa: ARG002 - state and attempt tell all
        """Stale unless the callback is SCHEDULED at this attempt."""
        _require(node, State.SCHEDULED, self.attempt)


@attrs.frozen
class Backoff:
    """Ends the pause after a failed attempt."""

    type: ClassVar[TaskType] = BACKOFF
    deadline: datetime
    attempt: int

    @property
    def kind(self) -> TaskKind:
        """Fires when the pause is over."""
        return TimerKind(self.deadline)

    def validate(self, ref: Ref, node: Node) -> None:  # noqa: ARG002 - state and attempt tell all
        """Stale unless the callback is BACKING_OFF after this attempt."""
        _require(node, State.BACKING_OFF, self.attempt)


class InvocationSerializer:
    """Invocations to bytes and back; the destination stands in the kind."""

    @staticmethod
    def serialize(task: Invocation, /) -> bytes:
        """See `TaskSerializer`."""
        return CallbackTask(attempt=task.attempt).SerializeToString()

    @staticmethod
    def deserialize(data: bytes, kind: TaskKind, /) -> Invocation:
        """See `TaskSerializer`."""
        if not isinstance(kind, OutboundKind):
            raise InvalidTaskKindError(f"{INVOCATION.name} is an outbound task, not {kind}")
        return Invocation(kind.destination, CallbackTask.FromString(data).attempt)


class BackoffSerializer:
    """Backoffs to bytes and back; the deadline stands in the kind."""

    @staticmethod
    def serialize(task: Backoff, /) -> bytes:
        """See `TaskSerializer`."""
        return CallbackTask(attempt=task.attempt).SerializeToString()

    @staticmethod
    def deserialize(data: bytes, kind: TaskKind, /) -> Backoff:
        """See `TaskSerializer`."""
        if not isinstance(kind, TimerKind):
            raise InvalidTaskKindError(f"{BACKOFF.name} is a timer, not {kind}")
        return Backoff(kind.deadline, CallbackTask.FromString(data).attempt)


_STAGES: Final = {State.STANDBY: 1, State.SCHEDULED: 2, State.BACKING_OFF: 2}
_LAST_STAGE: Final = 3


class CallbackDefinition:
    """Callbacks for a registry."""

    data_type: Final[builtins.type[Callback]] = Callback

    @property
    def type(self) -> MachineType:
        """See `MachineDefinition`."""
        return CALLBACK

    @staticmethod
    def serialize(data: Callback, /) -> bytes:
        """See `MachineDefinition`."""
        data.message.state = data.state.value
        return data.message.SerializeToString()

    @staticmethod
    def deserialize(data: bytes, /) -> Callback:
        """See `MachineDefinition`."""
        try:
            return Callback(CallbackInfo.FromString(data))
        except DecodeError as error:
            raise SerializationError(f"{len(data)} bytes are not a CallbackInfo") from error

    @staticmethod
    def compare(a: Callback, b: Callback, /) -> int:
        """Which is newer: by stage, and while it is being delivered by attempt.

        Raises:
            ValueError: one has succeeded and the other failed.
        """
        stage_a, stage_b = (_STAGES.get(callback.state, _LAST_STAGE) for callback in (a, b))
        if stage_a != stage_b:
            return stage_a - stage_b
        if stage_a == _LAST_STAGE and a.state is not b.state:
            raise ValueError(f"a callback cannot be both {a.state.name} and {b.state.name}")
        progress_a, progress_b = (
            2 * callback.attempt + (callback.state is State.BACKING_OFF) for callback in (a, b)
        )
        return progress_a - progress_b if stage_a == _STAGES[State.SCHEDULED] else 0
