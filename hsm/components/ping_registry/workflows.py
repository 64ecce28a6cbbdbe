"""Workflows and their index in a journal: one method a command."""

from __future__ import annotations

from uuid import UUID

from hsm.aggregate.engine import Engine
from hsm.aggregate.options import AggregateOptions
from hsm.components.ping_registry._wrapping import package_errors
from hsm.components.ping_registry.commands import (
    AbortExpired,
    AppendPing,
    BeginWorkflow,
    Commit,
    CommitWorkflow,
    Delete,
    DeleteWorkflow,
    End,
    IndexCommand,
    Init,
    PostSummary,
    Snapshot,
    WorkflowCommand,
)
from hsm.components.ping_registry.errors import UninitializedError
from hsm.components.ping_registry.events import IndexFact, WorkflowFact
from hsm.components.ping_registry.index import IndexBehavior, IndexState
from hsm.components.ping_registry.workflow import Behavior, State
from persistence.journal import EPOCH, NO_VC, RETRY_NO_VC, EventId, Expectation, Journal

__all__ = ["WorkflowIndex", "Workflows"]


class Workflows:
    """The ping-registry workflows of a journal.

    Every method raises errors of this package alone: `JournalError` for whatever the journal raises, version
    conflicts included.

    Semantics: nog `pingregistrywf.Workflows` (2019).
    """

    def __init__(self, journal: Journal, options: AggregateOptions | None = None) -> None:
        """Work on an open journal."""
        self._engine: Engine[State, WorkflowCommand, WorkflowFact] = Engine(journal, Behavior(), options)

    async def find(self, id_: UUID) -> State:
        """The present state of a workflow.

        Raises:
            UninitializedError: there is none with this id.
        """
        async with package_errors():
            state = await self._engine.find_id(id_)
        if state.vid == EPOCH:
            raise UninitializedError(id_)
        return state

    async def init(self, id_: UUID, command: Init) -> EventId:
        """Start a workflow; the version afterwards."""
        return await self._tell(id_, NO_VC, command)

    async def append_ping(
        self, id_: UUID, vid: Expectation, code: int, message: str, *, sender: str = "", request_id: str = ""
    ) -> EventId:
        """Note a ping; the version afterwards. See `AppendPing`."""
        return await self._tell(id_, vid, AppendPing(code, message, sender, request_id))

    async def post_summary(
        self, id_: UUID, vid: Expectation, code: int, message: str, *, request_id: str = ""
    ) -> EventId:
        """Summarise the pings; the version afterwards. See `PostSummary`."""
        return await self._tell(id_, vid, PostSummary(code, message, request_id))

    async def commit(self, id_: UUID, vid: Expectation, *, request_id: str = "") -> EventId:
        """Accept the summary; the version afterwards. See `Commit`."""
        return await self._tell(id_, vid, Commit(request_id))

    async def abort_expired(self, id_: UUID, vid: Expectation) -> EventId:
        """Give up a workflow; the version afterwards."""
        return await self._tell(id_, vid, AbortExpired())

    async def end(self, id_: UUID, vid: Expectation) -> EventId:
        """Write the end marker; the version afterwards."""
        return await self._tell(id_, vid, End())

    async def delete(self, id_: UUID, vid: Expectation) -> None:
        """Delete the history of a workflow that is completed; one that is not there is deleted already."""
        async with package_errors():
            await self._engine.delete_id_vid(id_, vid, Delete())

    async def _tell(self, id_: UUID, vid: Expectation, command: WorkflowCommand) -> EventId:
        async with package_errors():
            return await self._engine.tell_id_vid(id_, vid, command)


class WorkflowIndex:
    """The indexes of workflows in a journal, one for each registry."""

    def __init__(self, journal: Journal, options: AggregateOptions | None = None) -> None:
        """Work on an open journal."""
        self._engine: Engine[IndexState, IndexCommand, IndexFact] = Engine(journal, IndexBehavior(), options)

    async def find(self, id_: UUID) -> IndexState:
        """The present state of an index; one that nothing was written to is empty."""
        async with package_errors():
            return await self._engine.find_id(id_)

    async def begin(
        self, id_: UUID, workflow_id: UUID, workflow_event_id: EventId, vid: Expectation = RETRY_NO_VC
    ) -> EventId:
        """List a workflow as active; the version afterwards."""
        return await self._tell(id_, vid, BeginWorkflow(workflow_id, workflow_event_id))

    async def commit(
        self, id_: UUID, workflow_id: UUID, workflow_event_id: EventId, vid: Expectation = RETRY_NO_VC
    ) -> EventId:
        """List a workflow as completed; the version afterwards.

        Raises:
            UnknownWorkflowError: it was not listed as active.
        """
        return await self._tell(id_, vid, CommitWorkflow(workflow_id, workflow_event_id))

    async def delete(self, id_: UUID, workflow_id: UUID, vid: Expectation = RETRY_NO_VC) -> EventId:
        """Take a completed workflow off the list; the version afterwards.

        Raises:
            UnknownWorkflowError: it was not listed as completed.
        """
        return await self._tell(id_, vid, DeleteWorkflow(workflow_id))

    async def snapshot(
        self, id_: UUID, vid: Expectation = RETRY_NO_VC, *, if_storage_reduction: bool = False
    ) -> EventId:
        """Write the list as new events; the version afterwards.

        Raises:
            TooManyWorkflowsError: the list is too long.
            SmallStorageReductionError: little would be saved.
        """
        return await self._tell(id_, vid, Snapshot(if_storage_reduction))

    async def _tell(self, id_: UUID, vid: Expectation, command: IndexCommand) -> EventId:
        async with package_errors():
            return await self._engine.tell_id_vid(id_, vid, command)
