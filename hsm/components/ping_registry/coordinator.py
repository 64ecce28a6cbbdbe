"""The coordinator: commands that change a workflow and its index, completed whatever crashes."""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID, uuid4, uuid5

import attrs

from hsm.aggregate.errors import SagaConflictError
from hsm.aggregate.options import AggregateOptions
from hsm.aggregate.sagas import Saga, Sagas
from hsm.components.ping_registry import _records
from hsm.components.ping_registry._records import BeginRecord, CompleteRecord
from hsm.components.ping_registry._wrapping import package_errors
from hsm.components.ping_registry.commands import Init
from hsm.components.ping_registry.errors import (
    JournalError,
    PingRegistryError,
    SmallStorageReductionError,
    StateConflictError,
    TooManyWorkflowsError,
    UnknownWorkflowError,
    WorkflowAbortedError,
)
from hsm.components.ping_registry.events import IndexedWorkflow
from hsm.components.ping_registry.names import index_id, registry_id, server_name
from hsm.components.ping_registry.workflow import State, StateCode
from hsm.components.ping_registry.workflows import WorkflowIndex, Workflows
from hsm.engine.clock import Clock, SystemClock, from_nanos, time_limit
from persistence.journal import (
    NO_VC,
    RETRY_NO_VC,
    EventId,
    Expectation,
    Journal,
    VersionConflictError,
)

__all__ = [
    "ACTIVE_FOR",
    "COMPLETED_FOR",
    "Begun",
    "Committed",
    "Coordinator",
    "ExpiryReport",
    "Gathered",
    "SummaryCode",
]

_logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

ACTIVE_FOR: Final = timedelta(days=1)
"""How long a workflow may take before it is aborted."""

COMPLETED_FOR: Final = timedelta(days=5)
"""How long a completed workflow is kept."""


class SummaryCode(enum.IntEnum):
    """Codes that tell how far a workflow is, where it has no status of its own."""

    SUMMARIZED = 100
    ACTIVE = 101


@attrs.frozen
class Begun:
    """A workflow that was begun: its id, and the versions of index and workflow."""

    workflow_id: UUID
    index_vid: EventId
    workflow_vid: EventId


@attrs.frozen
class Committed:
    """A workflow that was committed: the versions of index and workflow."""

    index_vid: EventId
    workflow_vid: EventId


@attrs.frozen
class Gathered:
    """What a workflow has gathered.

    Attributes:
        state: the workflow.
        code: `SummaryCode.ACTIVE` until there is a summary, `SummaryCode.SUMMARIZED` until that is committed,
            then the code of the summary, or of the abort.
        message: of the summary or the abort; the name of the state before.
        time: of the event that says so; None before there is one.
    """

    state: State
    code: int
    message: str
    time: datetime | None

    @property
    def complete(self) -> bool:
        """Whether there is a summary, or never will be."""
        return self.state.state_code.value >= StateCode.SUMMARIZED.value


@attrs.frozen
class ExpiryReport:
    """What a run of `Coordinator.expire` has done.

    Attributes:
        aborted: workflows that had taken too long.
        deleted: workflows that were completed long ago.
        snapshot: whether the index was written anew.
        failures: what went wrong, by workflow; the others were seen to.
    """

    aborted: tuple[UUID, ...] = ()
    deleted: tuple[UUID, ...] = ()
    snapshot: bool = False
    failures: tuple[tuple[UUID, Exception], ...] = ()


class Coordinator:
    """Begins, commits and expires the workflows of a registry.

    Each of these writes to two histories. What is to be done is recorded first, and forgotten when all of
    it is done: first the workflow, then the index, then the end marker. A crash in between leaves the record.
    `resume` then completes the command, or the caller does by asking again with the same request id.
    """

    def __init__(
        self,
        journal: Journal,
        registry: str,
        *,
        clock: Clock | None = None,
        options: AggregateOptions | None = None,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        """Work on an open journal.

        Raises:
            InvalidNameError: `registry` is no name.
        """
        self._journal = journal
        self._clock: Clock = clock or SystemClock()
        self._new_id = new_id
        self.registry: Final = registry
        self.registry_id: Final = registry_id(registry)
        self.index_id: Final = index_id(registry)
        options = options or AggregateOptions(clock=self._clock)
        self.workflows: Final = Workflows(journal, options)
        self.index: Final = WorkflowIndex(journal, options)
        self._sagas = Sagas(journal.store, journal.namespace)

    # The administrator

    async def begin(
        self,
        workflow_id: UUID | None = None,
        *,
        expected_servers: tuple[str, ...] = (),
        request_id: str = "",
    ) -> Begun:
        """Begin a workflow.

        Args:
            workflow_id: of the workflow. If it is not given, it follows from the request id; without that,
                a new one is made.
            expected_servers: servers that have to ping, by name.
            request_id: of this request; the id of the workflow unless given. Asking again with the same
                request id returns the workflow that there is.

        Raises:
            StateConflictError: another request has begun a workflow with this id.
            ArgumentNotIdempotentError: it was begun with other arguments.
        """
        if workflow_id is None:
            workflow_id = uuid5(self.index_id, request_id) if request_id else self._new_id()
        servers = tuple(server_name(server) for server in expected_servers)
        record = BeginRecord(workflow_id, servers, request_id or str(workflow_id))
        return await self._recorded(_records.begin_saga(self.index_id, record), lambda: self._begin(record))

    async def _begin(self, record: BeginRecord) -> Begun:
        init = Init(self.registry_id, record.expected_servers, record.request_id)
        try:
            await self.workflows.init(record.workflow_id, init)
        except JournalError as error:
            if not isinstance(error.__cause__, VersionConflictError):
                raise
            # Whoever completes what is recorded was faster, or another request: now the state tells.
            await self.workflows.init(record.workflow_id, init)
        state = await self.workflows.find(record.workflow_id)
        index_vid = await self.index.begin(self.index_id, record.workflow_id, state.start.event_id)
        return Begun(record.workflow_id, index_vid, state.vid)

    async def commit(self, workflow_id: UUID, vid: Expectation = NO_VC, *, request_id: str = "") -> Committed:
        """Accept the summary of a workflow.

        Args:
            workflow_id: of the workflow.
            vid: the version of the workflow that was looked at; `NO_VC` for any.
            request_id: of this request; the id of the workflow unless given. Asking again with the same
                request id succeeds, whatever has happened since.

        Raises:
            UninitializedError: there is no such workflow.
            WorkflowAbortedError: it was aborted.
            StateConflictError: it has no summary yet; or another request has committed it, and it has ended.
        """
        await self._own(workflow_id)
        expected = vid if isinstance(vid, EventId) else None
        record = CompleteRecord(workflow_id, expected, request_id or str(workflow_id))
        saga = _records.complete_saga(self.index_id, record)
        return await self._recorded(saga, lambda: self._complete(record))

    async def _complete(self, record: CompleteRecord) -> Committed:
        id_ = record.workflow_id
        if record.expired:
            await self.workflows.abort_expired(id_, RETRY_NO_VC)
        else:
            vid = NO_VC if record.expected_vid is None else record.expected_vid
            try:
                await self.workflows.commit(id_, vid, request_id=record.request_id)
            except PingRegistryError as error:
                state = await self.workflows.find(id_)
                if not state.aborted and state.completion.request_id != record.request_id:
                    if isinstance(error.__cause__, VersionConflictError):
                        # Refused for good: the version that was looked at will not come back.
                        await self._forget(_records.complete_saga(self.index_id, record))
                    raise
        state = await self.workflows.find(id_)
        try:
            index_vid = await self.index.commit(self.index_id, id_, state.completion.event_id)
        except UnknownWorkflowError:
            # Its begin is still in the middle.
            await self.index.begin(self.index_id, id_, state.start.event_id)
            index_vid = await self.index.commit(self.index_id, id_, state.completion.event_id)
        workflow_vid = await self.workflows.end(id_, RETRY_NO_VC)
        if state.aborted and not record.expired:
            raise WorkflowAbortedError(id_, state.completion.code, state.completion.message)
        return Committed(index_vid, workflow_vid)

    async def get(
        self, workflow_id: UUID, *, wait: bool = False, timeout: timedelta | None = None
    ) -> Gathered:
        """What a workflow has gathered; with `wait`, once there is a summary, or the workflow was aborted.

        Raises:
            UninitializedError: there is no such workflow.
            TimeoutError: there was no summary within `timeout`.
        """
        if not wait:
            return _gathered(await self._own(workflow_id))
        async with (
            time_limit(self._clock, timeout),
            self._journal.subscribe(workflow_id) as subscription,
        ):
            while True:
                gathered = _gathered(await self._own(workflow_id))
                if gathered.complete:
                    return gathered
                await subscription.wait()

    async def _own(self, workflow_id: UUID) -> State:
        """The state of a workflow, which has to be one of this registry."""
        state = await self.workflows.find(workflow_id)
        if state.registry_id != self.registry_id:
            raise StateConflictError(f"workflow {workflow_id} is not one of registry {self.registry!r}")
        return state

    # What is left to do

    async def resume(self) -> int:
        """Complete the commands that a crash has left in the middle; how many there were.

        A command that is refused is forgotten, as its caller would have been told. Others that fail stay for
        the next time, and hold up no more than themselves.
        """
        count = 0
        async with package_errors():
            pending = [saga async for saga in self._sagas.pending(_records.prefix(self.index_id))]
        for saga in pending:
            try:
                count += await self._carry_out(saga)
            except PingRegistryError as error:
                _logger.warning("registry %s: a command was not completed: %s", self.registry, error)
        return count

    async def _carry_out(self, saga: Saga) -> bool:
        """Complete a command, unless its caller has had an answer meanwhile; whether that was done."""
        async with package_errors():
            if not await self._sagas.is_pending(saga):
                return False
        record = _records.parse(saga)
        if isinstance(record, BeginRecord):
            await self._completed(saga, lambda: self._begin(record))
        else:
            await self._completed(saga, lambda: self._complete(record))
        return True

    async def expire(self) -> ExpiryReport:
        """Abort what was begun more than a day ago, delete what was completed more than five days ago.

        Then the index is written anew if that saves storage. A workflow that fails does not keep the others.
        """
        await self.resume()
        now = from_nanos(self._clock.time_ns())
        index = await self.index.find(self.index_id)
        aborted: list[UUID] = []
        deleted: list[UUID] = []
        failures: list[tuple[UUID, Exception]] = []
        for workflow in index.active.values():
            if now - workflow.started.time > ACTIVE_FOR:
                await self._attempt(workflow, self._abort, aborted, failures)
        for workflow in index.completed.values():
            if workflow.completed is not None and now - workflow.completed.time > COMPLETED_FOR:
                await self._attempt(workflow, self._delete, deleted, failures)
        return ExpiryReport(tuple(aborted), tuple(deleted), await self._snapshot(), tuple(failures))

    async def _snapshot(self) -> bool:
        try:
            before = (await self.index.find(self.index_id)).vid
            return await self.index.snapshot(self.index_id, before, if_storage_reduction=True) != before
        except (SmallStorageReductionError, TooManyWorkflowsError, JournalError) as error:
            # It is not worth it, or somebody else has written meanwhile: there will be another time.
            _logger.debug("registry %s: no snapshot of the index: %s", self.registry, error)
            return False

    async def _abort(self, workflow_id: UUID) -> None:
        record = CompleteRecord(workflow_id, None, "", expired=True)
        await self._recorded(_records.complete_saga(self.index_id, record), lambda: self._complete(record))

    async def _delete(self, workflow_id: UUID) -> None:
        await self.workflows.delete(workflow_id, NO_VC)
        with contextlib.suppress(UnknownWorkflowError):
            # It was listed: another daemon of this registry has just taken it off.
            await self.index.delete(self.index_id, workflow_id)

    async def _attempt(
        self,
        workflow: IndexedWorkflow,
        step: Callable[[UUID], Awaitable[None]],
        done: list[UUID],
        failures: list[tuple[UUID, Exception]],
    ) -> None:
        try:
            await step(workflow.workflow_id)
        except PingRegistryError as error:
            _logger.warning("registry %s: workflow %s: %s", self.registry, workflow.workflow_id, error)
            failures.append((workflow.workflow_id, error))
        else:
            done.append(workflow.workflow_id)

    async def _recorded(self, saga: Saga, steps: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Carry out a command that is recorded meanwhile; one that is refused is forgotten, too."""
        async with package_errors():
            try:
                await self._sagas.record(saga)
            except SagaConflictError as error:
                raise StateConflictError("another request is under way") from error
        return await self._completed(saga, steps)

    async def _completed(self, saga: Saga, steps: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            result = await steps()
        except JournalError:
            # What has become of it is unknown.
            raise
        except PingRegistryError:
            await self._forget(saga)
            raise
        await self._forget(saga)
        return result

    async def _forget(self, saga: Saga) -> None:
        try:
            async with package_errors():
                await self._sagas.forget(saga)
        except JournalError as error:
            # The answer is known. That the record stays does no harm: `resume` finds nothing left to do.
            _logger.warning("registry %s: the record %r stays: %s", self.registry, saga.id, error)


def _gathered(state: State) -> Gathered:
    code = state.state_code
    if code.value < StateCode.SUMMARIZED.value:
        return Gathered(state, SummaryCode.ACTIVE, code.name.lower(), None)
    status = state.summary_status
    if code is StateCode.SUMMARIZED:
        return Gathered(state, SummaryCode.SUMMARIZED, status.message, status.event_id.time)
    return Gathered(state, status.code, status.message, status.event_id.time)
