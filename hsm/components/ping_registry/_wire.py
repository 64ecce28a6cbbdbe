"""Events of workflows and of their index on the wire: the field numbers are those of `nogevents.proto`."""

from __future__ import annotations

from typing import Final, assert_never
from uuid import UUID

from hsm.aggregate.codec import type_name
from hsm.components.ping_registry.errors import EventTypeError, NewEventsError
from hsm.components.ping_registry.events import (
    IndexedWorkflow,
    IndexFact,
    PingRegistryCommitted,
    PingRegistryCompleted,
    PingRegistryStarted,
    ServerPinged,
    ServerPingsGathered,
    SnapshotBegan,
    SnapshotEnded,
    SnapshotTaken,
    WorkflowCompleted,
    WorkflowDeleted,
    WorkflowFact,
    WorkflowStarted,
)
from persistence.errors import InvalidRequestError
from persistence.journal import EventId
from persistence.proto.nogevents_pb2 import Event as Message, WorkflowIndexState

__all__ = ["decode_index_fact", "decode_workflow_fact", "encode_index_fact", "encode_workflow_fact"]

_UUID_BYTES: Final = 16
_INT32: Final = range(-(2**31), 2**31)


def encode_workflow_fact(fact: WorkflowFact) -> Message:
    """The event of a fact of a workflow, without ids.

    Raises:
        NewEventsError: a value does not fit into an event.
    """
    match fact:
        case PingRegistryStarted(registry_id, expected_servers, request_id):
            return Message(
                event=Message.EV_FSO_PING_REGISTRY_STARTED,
                registry_id=registry_id.bytes,
                expected_senders=expected_servers,
                request_id=request_id,
            )
        case ServerPinged(code, message, sender, request_id):
            return Message(
                event=Message.EV_FSO_SERVER_PINGED,
                status_code=_code(code),
                status_message=message,
                sender=sender,
                request_id=request_id,
            )
        case ServerPingsGathered(code, message, request_id):
            return Message(
                event=Message.EV_FSO_SERVER_PINGS_GATHERED,
                status_code=_code(code),
                status_message=message,
                request_id=request_id,
            )
        case PingRegistryCompleted(code, message, request_id):
            return Message(
                event=Message.EV_FSO_PING_REGISTRY_COMPLETED,
                status_code=_code(code),
                status_message=message,
                request_id=request_id,
            )
        case PingRegistryCommitted():
            return Message(event=Message.EV_FSO_PING_REGISTRY_COMMITTED)
        case _:
            assert_never(fact)


def decode_workflow_fact(message: Message) -> WorkflowFact:
    """The fact that an event of a workflow tells.

    Raises:
        EventTypeError: it is no event of a workflow.
    """
    if message.event == Message.EV_FSO_PING_REGISTRY_STARTED:
        if message.workflow_id or message.workflow_event_id:
            raise EventTypeError("the event tells of a start to an index, and not to a workflow")
        return PingRegistryStarted(
            _uuid(message.registry_id), tuple(message.expected_senders), message.request_id
        )
    if message.event == Message.EV_FSO_SERVER_PINGED:
        return ServerPinged(message.status_code, message.status_message, message.sender, message.request_id)
    if message.event == Message.EV_FSO_SERVER_PINGS_GATHERED:
        return ServerPingsGathered(message.status_code, message.status_message, message.request_id)
    if message.event == Message.EV_FSO_PING_REGISTRY_COMPLETED:
        if message.workflow_id:
            raise EventTypeError("the event tells of a completion to an index, and not to a workflow")
        return PingRegistryCompleted(message.status_code, message.status_message, message.request_id)
    if message.event == Message.EV_FSO_PING_REGISTRY_COMMITTED:
        return PingRegistryCommitted()
    raise EventTypeError(f"{type_name(message)} is no event of a ping-registry workflow")


def encode_index_fact(fact: IndexFact) -> Message:
    """The event of a fact of an index, without ids."""
    match fact:
        case WorkflowStarted(workflow_id, event_id):
            return Message(
                event=Message.EV_FSO_PING_REGISTRY_STARTED,
                workflow_id=workflow_id.bytes,
                workflow_event_id=event_id,
            )
        case WorkflowCompleted(workflow_id, event_id):
            return Message(
                event=Message.EV_FSO_PING_REGISTRY_COMPLETED,
                workflow_id=workflow_id.bytes,
                workflow_event_id=event_id,
            )
        case WorkflowDeleted(workflow_id):
            return Message(event=Message.EV_FSO_PING_REGISTRY_DELETED, workflow_id=workflow_id.bytes)
        case SnapshotBegan():
            return Message(event=Message.EV_SNAPSHOT_BEGIN)
        case SnapshotTaken(workflows, last_committed):
            index = WorkflowIndexState(
                ping_registry=[
                    WorkflowIndexState.PingRegistry(
                        workflow_id=workflow.workflow_id.bytes,
                        started_workflow_event_id=workflow.started,
                        completed_workflow_event_id=workflow.completed or b"",
                    )
                    for workflow in workflows
                ],
                last_committed_workflow_id=b"" if last_committed is None else last_committed.bytes,
            )
            return Message(event=Message.EV_WORKFLOW_INDEX_SNAPSHOT_STATE, workflow_index_state=index)
        case SnapshotEnded():
            return Message(event=Message.EV_SNAPSHOT_END)
        case _:
            assert_never(fact)


def decode_index_fact(message: Message) -> IndexFact:
    """The fact that an event of an index tells.

    Raises:
        EventTypeError: it is no event of an index.
    """
    if message.event == Message.EV_FSO_PING_REGISTRY_STARTED:
        return WorkflowStarted(_uuid(message.workflow_id), _event_id(message.workflow_event_id))
    if message.event == Message.EV_FSO_PING_REGISTRY_COMPLETED:
        return WorkflowCompleted(_uuid(message.workflow_id), _event_id(message.workflow_event_id))
    if message.event == Message.EV_FSO_PING_REGISTRY_DELETED:
        return WorkflowDeleted(_uuid(message.workflow_id))
    if message.event == Message.EV_SNAPSHOT_BEGIN:
        return SnapshotBegan()
    if message.event == Message.EV_WORKFLOW_INDEX_SNAPSHOT_STATE:
        index = message.workflow_index_state
        last = index.last_committed_workflow_id
        return SnapshotTaken(tuple(map(_indexed, index.ping_registry)), _uuid(last) if last else None)
    if message.event == Message.EV_SNAPSHOT_END:
        return SnapshotEnded()
    raise EventTypeError(f"{type_name(message)} is no event of a workflow index")


def _indexed(row: WorkflowIndexState.PingRegistry) -> IndexedWorkflow:
    completed = row.completed_workflow_event_id
    return IndexedWorkflow(
        _uuid(row.workflow_id),
        _event_id(row.started_workflow_event_id),
        _event_id(completed) if completed else None,
    )


def _code(code: int) -> int:
    if code not in _INT32:
        raise NewEventsError(f"new events: status code {code} is not an int32")
    return code


def _uuid(value: bytes) -> UUID:
    if len(value) != _UUID_BYTES:
        raise EventTypeError(f"{value!r} is no id of a workflow or registry")
    return UUID(bytes=value)


def _event_id(value: bytes) -> EventId:
    try:
        return EventId(value)
    except InvalidRequestError as error:
        raise EventTypeError(f"{value!r} is no id of an event") from error
