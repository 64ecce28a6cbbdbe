"""What has happened in a workflow, or to the index: the facts that histories are made of."""

from __future__ import annotations

from uuid import UUID

import attrs

from persistence.journal import EventId

__all__ = [
    "IndexFact",
    "IndexedWorkflow",
    "PingRegistryCommitted",
    "PingRegistryCompleted",
    "PingRegistryStarted",
    "ServerPinged",
    "ServerPingsGathered",
    "SnapshotBegan",
    "SnapshotEnded",
    "SnapshotTaken",
    "WorkflowCompleted",
    "WorkflowDeleted",
    "WorkflowFact",
    "WorkflowStarted",
]


@attrs.frozen
class PingRegistryStarted:
    """The workflow has begun."""

    registry_id: UUID
    expected_servers: tuple[str, ...] = ()
    request_id: str = ""


@attrs.frozen
class ServerPinged:
    """A server has shown that it is there."""

    code: int
    message: str
    sender: str = ""
    request_id: str = ""


@attrs.frozen
class ServerPingsGathered:
    """The pings were summarised."""

    code: int
    message: str
    request_id: str = ""


@attrs.frozen
class PingRegistryCompleted:
    """The summary was accepted, or (with a code) the workflow was aborted."""

    code: int = 0
    message: str = ""
    request_id: str = ""


@attrs.frozen
class PingRegistryCommitted:
    """The end marker."""


WorkflowFact = (
    PingRegistryStarted | ServerPinged | ServerPingsGathered | PingRegistryCompleted | PingRegistryCommitted
)


@attrs.frozen
class WorkflowStarted:
    """The index lists a workflow as active."""

    workflow_id: UUID
    workflow_event_id: EventId


@attrs.frozen
class WorkflowCompleted:
    """The index lists a workflow as completed."""

    workflow_id: UUID
    workflow_event_id: EventId


@attrs.frozen
class WorkflowDeleted:
    """The index lists a workflow no more."""

    workflow_id: UUID


@attrs.frozen
class IndexedWorkflow:
    """One line of the index.

    Attributes:
        workflow_id: of the workflow.
        started: id of the event that has started it.
        completed: id of the event that has completed it; None while it is active.
    """

    workflow_id: UUID
    started: EventId
    completed: EventId | None = None


@attrs.frozen
class SnapshotBegan:
    """What the index listed so far is forgotten; what follows lists it again."""


@attrs.frozen
class SnapshotTaken:
    """The index as it was.

    Attributes:
        workflows: its lines.
        last_committed: the workflow that was completed last, if none was begun since.
    """

    workflows: tuple[IndexedWorkflow, ...]
    last_committed: UUID | None = None


@attrs.frozen
class SnapshotEnded:
    """The snapshot is complete."""


IndexFact = (
    WorkflowStarted | WorkflowCompleted | WorkflowDeleted | SnapshotBegan | SnapshotTaken | SnapshotEnded
)
