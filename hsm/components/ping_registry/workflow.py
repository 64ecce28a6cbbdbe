"""The ping-registry workflow: its state, and what each command comes to in each state."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, assert_never
from uuid import UUID

import attrs

from hsm.aggregate.behavior import Event, State as AggregateState
from hsm.components.ping_registry._wire import decode_workflow_fact, encode_workflow_fact
from hsm.components.ping_registry.commands import (
    AbortExpired,
    AppendPing,
    Commit,
    Delete,
    End,
    Init,
    PostSummary,
    WorkflowCommand,
)
from hsm.components.ping_registry.errors import (
    ArgumentNotIdempotentError,
    InvalidCommandError,
    StateConflictError,
)
from hsm.components.ping_registry.events import (
    PingRegistryCommitted,
    PingRegistryCompleted,
    PingRegistryStarted,
    ServerPinged,
    ServerPingsGathered,
    WorkflowFact,
)
from persistence.journal import EPOCH, EventId
from persistence.proto.nogevents_pb2 import Event as Message

__all__ = ["EXPIRED", "Advancer", "Behavior", "Event", "Ping", "State", "StateCode", "Status"]

EXPIRED: Final = 104
"""The status code of a workflow that was aborted because it took too long."""

_NIL: Final = UUID(int=0)
_NOTHING: Final[tuple[WorkflowFact, ...]] = ()


class StateCode(enum.Enum):
    """How far a workflow has come."""

    UNINITIALIZED = 0
    INITIALIZED = 1
    APPENDING = 2
    SUMMARIZED = 3
    COMPLETED = 4
    TERMINATED = 5


@attrs.frozen
class Status:
    """A word on how things stand.

    Attributes:
        code: 0, or what is wrong.
        message: for people.
        event_id: of the event that said so.
        request_id: of the command that asked for it.
    """

    code: int = 0
    message: str = ""
    event_id: EventId = EPOCH
    request_id: str = ""


@attrs.frozen
class Ping(Status):
    """What a server has said.

    Attributes:
        sender: name of the server; "" if it gave none.
    """

    sender: str = ""


_NO_STATUS: Final = Status()


@attrs.frozen
class State(AggregateState):
    """A workflow as its history tells it.

    Attributes:
        state_code: how far it has come.
        registry_id: of the registry whose servers are asked.
        expected_servers: servers that have to ping.
        start: when it was started, and by which request.
        pings: in the order in which they came.
        summary: of the pings; empty until there is one.
        completion: how it was completed; its code is not 0 if it was aborted.
    """

    state_code: StateCode = StateCode.UNINITIALIZED
    registry_id: UUID = _NIL
    expected_servers: tuple[str, ...] = ()
    start: Status = _NO_STATUS
    pings: tuple[Ping, ...] = ()
    summary: Status = _NO_STATUS
    completion: Status = _NO_STATUS

    @property
    def num_pings(self) -> int:
        """How many pings there are."""
        return len(self.pings)

    @property
    def aborted(self) -> bool:
        """Whether the workflow was given up."""
        return self.completion.code != 0

    @property
    def summary_status(self) -> Status:
        """How the workflow came out: the abort if there was one, else the summary."""
        return self.completion if self.aborted else self.summary

    @property
    def silent_servers(self) -> tuple[str, ...]:
        """The expected servers that have not pinged."""
        heard = {ping.sender for ping in self.pings}
        return tuple(server for server in self.expected_servers if server not in heard)

    def ping_of(self, sender: str, request_id: str) -> Ping | None:
        """The ping of a sender's request; None if there is none, or for a request without id."""
        if not request_id:
            return None
        return next(
            (ping for ping in self.pings if ping.request_id == request_id and ping.sender == sender), None
        )


class Advancer:
    """Moves a workflow on, event by event."""

    def advance(self, state: State, event: Event[WorkflowFact]) -> State:
        """The state after the event."""
        match event.data:
            case PingRegistryStarted() as started:
                return attrs.evolve(
                    state,
                    state_code=StateCode.INITIALIZED,
                    registry_id=started.registry_id,
                    expected_servers=started.expected_servers,
                    start=Status(event_id=event.id, request_id=started.request_id),
                )
            case ServerPinged(code, message, sender, request_id):
                ping = Ping(code, message, event.id, request_id, sender)
                return attrs.evolve(state, state_code=StateCode.APPENDING, pings=(*state.pings, ping))
            case ServerPingsGathered(code, message, request_id):
                summary = Status(code, message, event.id, request_id)
                return attrs.evolve(state, state_code=StateCode.SUMMARIZED, summary=summary)
            case PingRegistryCompleted(code, message, request_id):
                completion = Status(code, message, event.id, request_id)
                return attrs.evolve(state, state_code=StateCode.COMPLETED, completion=completion)
            case PingRegistryCommitted():
                return attrs.evolve(state, state_code=StateCode.TERMINATED)
            case _:
                assert_never(event.data)


class Behavior:
    """What the commands of a workflow come to.

    Semantics: nog `pingregistrywf` (2019). Besides, a command with a request id that was carried out
    already is a success without an event, whatever the state; the workflow knows senders, expected servers
    and how it was aborted.
    """

    def new_event(self, message: Message) -> WorkflowFact:
        """The fact of an event.

        Raises:
            EventTypeError: it is no event of a workflow.
        """
        return decode_workflow_fact(message)

    def new_message(self, fact: WorkflowFact) -> Message:
        """The event of a fact.

        Raises:
            NewEventsError: a value does not fit into an event.
        """
        return encode_workflow_fact(fact)

    def new_state(self, id_: UUID, /) -> State:
        """A workflow that was not started."""
        return State(id_)

    def new_advancer(self) -> Advancer:
        """See `Advancer`."""
        return Advancer()

    def is_repeat(self, state: State, command: WorkflowCommand) -> bool:
        """Whether the request of the command was carried out already.

        Raises:
            ArgumentNotIdempotentError: it was, with another argument.
        """
        match command:
            case Init() if _is_same(state.start, command.request_id):
                _require_same("RegistryId", state.registry_id, command.registry_id)
                _require_same("ExpectedServers", state.expected_servers, command.expected_servers)
                return True
            case AppendPing():
                ping = state.ping_of(command.sender, command.request_id)
                if ping is None:
                    return False
                _require_same("Code", ping.code, command.code)
                _require_same("Message", ping.message, command.message)
                return True
            case PostSummary() if _is_same(state.summary, command.request_id):
                _require_same("Code", state.summary.code, command.code)
                _require_same("Message", state.summary.message, command.message)
                return True
            case Commit():
                return _is_same(state.completion, command.request_id)
            case _:
                return False

    def tell(self, state: State, command: WorkflowCommand) -> Sequence[WorkflowFact]:
        """What the command comes to; nothing if it was carried out already.

        Raises:
            StateConflictError: the command does not fit the state.
            ArgumentNotIdempotentError: it was carried out already, with another argument.
            InvalidCommandError: the command is none of a workflow.
        """
        code = state.state_code
        match command:
            case Init(registry_id, expected_servers, request_id):
                return _init(state, registry_id, expected_servers, request_id)
            case AppendPing():
                _require(state, command, _OPEN)
                return (ServerPinged(command.code, command.message, command.sender, command.request_id),)
            case PostSummary():
                _require(state, command, _OPEN)
                return (ServerPingsGathered(command.code, command.message, command.request_id),)
            case Commit():
                _require(state, command, {StateCode.SUMMARIZED, StateCode.COMPLETED})
                if code is StateCode.COMPLETED:
                    return _NOTHING
                return (PingRegistryCompleted(request_id=command.request_id),)
            case AbortExpired():
                _require(state, command, set(StateCode) - {StateCode.UNINITIALIZED})
                return _NOTHING if code in _CLOSED else (PingRegistryCompleted(EXPIRED, "expired"),)
            case End():
                _require(state, command, _CLOSED)
                return _NOTHING if code is StateCode.TERMINATED else (PingRegistryCommitted(),)
            case Delete():
                _require(state, command, {StateCode.UNINITIALIZED, *_CLOSED})
                return _NOTHING
            case _:
                raise InvalidCommandError(f"{command!r} is no command of a ping-registry workflow")


_OPEN: Final = frozenset({StateCode.INITIALIZED, StateCode.APPENDING})
_CLOSED: Final = frozenset({StateCode.COMPLETED, StateCode.TERMINATED})


def _init(
    state: State, registry_id: UUID, expected_servers: tuple[str, ...], request_id: str
) -> Sequence[WorkflowFact]:
    if state.state_code is StateCode.UNINITIALIZED:
        return (PingRegistryStarted(registry_id, expected_servers, request_id),)
    if state.state_code is not StateCode.INITIALIZED:
        raise StateConflictError(f"Init of a workflow that is {state.state_code.name.lower()}")
    _require_same("RegistryId", state.registry_id, registry_id)
    _require_same("ExpectedServers", state.expected_servers, expected_servers)
    return _NOTHING


def _require(state: State, command: WorkflowCommand, codes: set[StateCode] | frozenset[StateCode]) -> None:
    if state.state_code not in codes:
        name = type(command).__name__
        raise StateConflictError(f"{name} of a workflow that is {state.state_code.name.lower()}")


def _require_same(argument: str, known: object, given: object) -> None:
    if known != given:
        raise ArgumentNotIdempotentError(argument)


def _is_same(status: Status, request_id: str) -> bool:
    return bool(request_id) and status.request_id == request_id
