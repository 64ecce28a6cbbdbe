"""What is recorded of a command while it is carried out: events of the same schema as those it comes to."""

from __future__ import annotations

from uuid import UUID

import attrs
from google.protobuf.message import DecodeError

from hsm.aggregate.sagas import Saga
from hsm.components.ping_registry.errors import JournalError
from hsm.components.ping_registry.workflow import EXPIRED
from persistence.journal import EventId
from persistence.proto.nogevents_pb2 import Event as Message

__all__ = ["BeginRecord", "CompleteRecord", "begin_saga", "complete_saga", "parse", "prefix"]


@attrs.frozen
class BeginRecord:
    """A workflow is to be begun."""

    workflow_id: UUID
    expected_servers: tuple[str, ...]
    request_id: str


@attrs.frozen
class CompleteRecord:
    """A workflow is to be committed, or (`expired`) aborted."""

    workflow_id: UUID
    expected_vid: EventId | None
    request_id: str
    expired: bool = False


def prefix(index_id: UUID) -> str:
    """What the ids of all sagas of a registry begin with."""
    return f"ping-registry/{index_id.hex}/"


def begin_saga(index_id: UUID, record: BeginRecord) -> Saga:
    """The saga of a begin."""
    message = Message(
        event=Message.EV_FSO_PING_REGISTRY_STARTED,
        workflow_id=record.workflow_id.bytes,
        expected_senders=record.expected_servers,
        request_id=record.request_id,
    )
    return _saga(index_id, record.workflow_id, "begin", message)


def complete_saga(index_id: UUID, record: CompleteRecord) -> Saga:
    """The saga of a commit or abort."""
    message = Message(
        event=Message.EV_FSO_PING_REGISTRY_COMPLETED,
        workflow_id=record.workflow_id.bytes,
        workflow_event_id=record.expected_vid or b"",
        status_code=EXPIRED if record.expired else 0,
        request_id=record.request_id,
    )
    return _saga(index_id, record.workflow_id, "abort" if record.expired else "commit", message)


def _saga(index_id: UUID, workflow_id: UUID, step: str, message: Message) -> Saga:
    data = message.SerializeToString(deterministic=True)
    return Saga(f"{prefix(index_id)}{workflow_id.hex}/{step}", data)


def parse(saga: Saga) -> BeginRecord | CompleteRecord:
    """The record of a saga.

    Raises:
        JournalError: it is damaged.
    """
    try:
        message = Message.FromString(saga.data)
        workflow_id = UUID(bytes=message.workflow_id)
        if message.event == Message.EV_FSO_PING_REGISTRY_STARTED:
            return BeginRecord(workflow_id, tuple(message.expected_senders), message.request_id)
        expected = message.workflow_event_id
        return CompleteRecord(
            workflow_id,
            EventId(expected) if expected else None,
            message.request_id,
            expired=message.status_code == EXPIRED,
        )
    except (DecodeError, ValueError) as error:
        raise JournalError(f"event journal: saga {saga.id!r} is damaged: {error}") from error
