"""Commands of the ping-registry workflow, and of the index of workflows."""

from __future__ import annotations

from uuid import UUID

import attrs

from hsm.aggregate.behavior import Command
from persistence.journal import EventId

__all__ = [
    "AbortExpired",
    "AppendPing",
    "BeginWorkflow",
    "Commit",
    "CommitWorkflow",
    "Delete",
    "DeleteWorkflow",
    "End",
    "IndexCommand",
    "Init",
    "PostSummary",
    "Snapshot",
    "WorkflowCommand",
]


@attrs.frozen
class Init(Command):
    """Start the workflow.

    Attributes:
        registry_id: of the registry whose servers are asked.
        expected_servers: by name; one that never pings makes the summary an error.
        request_id: makes the command repeatable for ever; "" leaves it repeatable until the first ping.
    """

    registry_id: UUID
    expected_servers: tuple[str, ...] = ()
    request_id: str = ""


@attrs.frozen
class AppendPing(Command):
    """Note that a server is there.

    Attributes:
        code: 0, or what is wrong with the server.
        message: for people.
        sender: name of the server.
        request_id: of the sender: the same ping is noted once. Without one, every call notes a ping.
    """

    code: int
    message: str
    sender: str = ""
    request_id: str = ""


@attrs.frozen
class PostSummary(Command):
    """End the gathering of pings.

    Attributes:
        code: 0, or what is wrong.
        message: for people.
        request_id: makes the command repeatable.
    """

    code: int
    message: str
    request_id: str = ""


@attrs.frozen
class Commit(Command):
    """Accept the summary.

    Attributes:
        request_id: makes the command repeatable after the end of the workflow, too.
    """

    request_id: str = ""


@attrs.frozen
class AbortExpired(Command):
    """Give up a workflow that has taken too long; its status says so."""


@attrs.frozen
class End(Command):
    """Note that the index knows of the completion: nothing is left to do."""


@attrs.frozen
class Delete(Command):
    """Ask whether the history may be deleted."""


WorkflowCommand = Init | AppendPing | PostSummary | Commit | AbortExpired | End | Delete


@attrs.frozen
class BeginWorkflow(Command):
    """List a workflow as active.

    Attributes:
        workflow_id: of the workflow.
        workflow_event_id: of the event that has started it.
    """

    workflow_id: UUID
    workflow_event_id: EventId


@attrs.frozen
class CommitWorkflow(Command):
    """List a workflow as completed.

    Attributes:
        workflow_id: of the workflow.
        workflow_event_id: of the event that has completed it.
    """

    workflow_id: UUID
    workflow_event_id: EventId


@attrs.frozen
class DeleteWorkflow(Command):
    """Take a completed workflow off the list."""

    workflow_id: UUID


@attrs.frozen
class Snapshot(Command):
    """Write the whole list as new events, so that earlier ones can be trimmed.

    Attributes:
        if_storage_reduction: refuse if there is little to be saved.
    """

    if_storage_reduction: bool = False


IndexCommand = BeginWorkflow | CommitWorkflow | DeleteWorkflow | Snapshot
