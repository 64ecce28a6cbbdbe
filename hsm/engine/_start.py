"""Starting executions: one commit writes a new run of an id, or finds that there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import attrs

from hsm.engine._closing import pending_tasks, termination
from hsm.engine._commit import Commit
from hsm.engine._execution import Execution, decode_row
from hsm.engine._executions import Executions
from hsm.engine._operate import has_seen
from hsm.engine._planner import Amendment
from hsm.engine._transaction import begin, end, plain, seal
from hsm.engine._translation import translated, unkeepable
from hsm.engine.cluster import Cluster
from hsm.engine.policies import ConflictPolicy, ReusePolicy
from hsm.errors import (
    CommitConflictError,
    ExecutionAlreadyStartedError,
    ExecutionNotFoundError,
)
from hsm.machine import VersionedTransition
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import Node
from hsm.tree._data import UNLOADED
from persistence import errors as storage
from persistence.executions import current_run_key, execution_key
from persistence.proto.execution_pb2 import CurrentRun, ExecutionRow, ExecutionStatus
from persistence.store import (
    CheckRequest,
    Concurrency,
    EngineStore,
    GetRequest,
    GetResponse,
    Operation,
    SetOptions,
    SetRequest,
)

__all__ = ["Start", "Starter"]

ResultT = TypeVar("ResultT")

_FIRST_WRITE: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
_FAILURES: Final = frozenset(
    {ExecutionStatus.EXECUTION_STATUS_FAILED, ExecutionStatus.EXECUTION_STATUS_TERMINATED}
)


@attrs.define
class Start(Generic[ResultT]):
    """What somebody wants to start.

    Attributes:
        key: namespace and id; the run id is made if it is empty.
        type_id: of the root's machine type.
        data: of the root.
        request_id: makes the start idempotent.
        on_start: first transitions, in the same commit.
        conflict: what to do if another run is running.
        reuse: whether to start another run after one that is closed.
        row: what else is in the execution's row.
        results: of `on_start`, as often as it has run.
        started: whether this has started a run.
        amend: what else the commit of the new run notes.
    """

    key: ExecutionKey
    type_id: int
    data: object
    request_id: str = ""
    on_start: Callable[[Node], ResultT] | None = None
    conflict: ConflictPolicy = ConflictPolicy.FAIL
    reuse: ReusePolicy = ReusePolicy.REJECT
    row: ExecutionRow = attrs.field(factory=ExecutionRow)
    results: list[ResultT] = attrs.field(factory=list[ResultT])
    started: bool = False
    amend: Amendment | None = None

    @property
    def is_strict(self) -> bool:
        """Whether any other run means that the start is refused."""
        return self.conflict is ConflictPolicy.FAIL and self.reuse is ReusePolicy.REJECT

    @property
    def request(self) -> str:
        """How the request is remembered; "" if it is not."""
        return self.request_id and f"start:{self.request_id}"


class Starter:
    """Starts executions."""

    def __init__(
        self,
        executions: Executions,
        store: EngineStore,
        registry: Registry,
        now: Callable[[], int],
        new_id: Callable[[], str],
        withdrawn: int,
        notice: Callable[[str], bool],
    ) -> None:
        self._executions = executions
        self._store = store
        self._registry = registry
        self._now = now
        self._new_id = new_id
        self._withdrawn = withdrawn
        self._notice = notice

    async def start(self, start: Start[ResultT]) -> Ref:
        """Write a new run, unless the same request has done so before, or the policies say otherwise.

        Raises:
            ExecutionAlreadyStartedError: another request has started an execution with this id.
            SerializationError: the run id or the request id cannot be kept.
        """
        found: str | None = None
        try:
            f"{start.key.run_id}{start.request_id}".encode()
        except UnicodeEncodeError as error:
            raise unkeepable(error) from error
        while True:
            try:
                return await self._create(start, [], [], found)
            except storage.ETagMismatchError:
                pass
            try:
                existing, found = await self._replace(start)
            except (storage.ETagMismatchError, CommitConflictError):
                # Somebody was faster; what is there now decides.
                found = None
                continue
            if existing is not None:
                return existing

    async def _create(
        self,
        start: Start[ResultT],
        before: list[Operation],
        others: list[tuple[Execution, Commit]],
        current_etag: str | None,
    ) -> Ref:
        """Write a new run and make it the current one; `before` and `others` are part of the same commit."""
        executions, now = self._executions, self._now()
        key = start.key._replace(run_id=start.key.run_id or self._new_id())
        partition = executions.partition(key)
        execution = _new(self._registry, key, partition, start, now, executions.cluster)
        begin(execution)
        try:
            execution.root._state.dirty[execution.root] = True
            if start.on_start is not None:
                start.results.append(plain(start.on_start(execution.root)))
            execution.root._state.check()
            row = CurrentRun(run_id=key.run_id, request_id=start.request_id)
            current = SetRequest(
                partition=partition,
                key=current_run_key(key.namespace, key.id),
                value=row.SerializeToString(),
                etag=current_etag,
                options=_FIRST_WRITE,
            )
            with executions.observed(execution):
                commit = executions.plan(execution, now, amend=start.amend)
                operations = commit.operations
                first = operations[0]
                if start.key.run_id and isinstance(first, SetRequest):
                    # Somebody else may have used this run id before.
                    operations[0] = attrs.evolve(first, options=_FIRST_WRITE)
                seal(execution)
                etag = await self._store.multi([current, *before, *operations])
            for _, other in others:
                other.done(etag)
            commit.done(etag)
            execution.root._state.clear()
        except storage.ETagMismatchError as error:
            if error.key == execution.row_key:
                raise _already_started(key, "", closed=True) from error
            raise
        except storage.PersistenceError as error:
            raise translated(error) from error
        finally:
            end(execution)
        start.started = True
        if executions.cached(execution.key) is None:
            # Else somebody has read it from the store already, and may have changed it.
            executions.admit(execution)
        for replaced, other in others:
            executions.committed(replaced, other)
        executions.committed(execution, commit)
        return Ref(key)

    async def _replace(self, start: Start[ResultT]) -> tuple[Ref | None, str | None]:
        """The run that answers the start, or the etag of a row to start over; raises if there is neither."""
        key, executions = start.key, self._executions
        found = await self._current(key)
        if found.data is None:
            return None, None
        current = decode_row(CurrentRun, current_run_key(key.namespace, key.id), found.data)
        existing = key._replace(run_id=current.run_id)
        if start.request_id and current.request_id == start.request_id:
            return Ref(existing), None
        if start.is_strict:
            # Refused, whatever it is; it need not be loaded for that.
            closed = await self._is_closed(existing)
            if closed is not None:
                raise _already_started(existing, current.request_id, closed=closed)
            return None, found.etag
        try:
            execution = await executions.acquire(existing, fresh=True)
        except ExecutionNotFoundError:
            return None, found.etag
        try:
            return await self._decide(start, execution, current, found.etag), None
        except ExecutionAlreadyStartedError as error:
            again = await self._current(key)
            if again.etag != found.etag:
                raise CommitConflictError(
                    "another run has taken the place of the one that refused"
                ) from error
            raise
        finally:
            execution.lock.release()

    async def _current(self, key: ExecutionKey) -> GetResponse:
        return await self._get(key, current_run_key(key.namespace, key.id))

    async def _get(self, key: ExecutionKey, row_key: str) -> GetResponse:
        try:
            return await self._store.get(GetRequest(partition=self._executions.partition(key), key=row_key))
        except storage.PersistenceError as error:
            raise translated(error) from error

    async def _is_closed(self, key: ExecutionKey) -> bool | None:
        """Whether a run is closed; None if it is gone."""
        row_key = execution_key(*key)
        found = await self._get(key, row_key)
        return None if found.data is None else bool(decode_row(ExecutionRow, row_key, found.data).close_nanos)

    async def _decide(
        self, start: Start[ResultT], execution: Execution, current: CurrentRun, etag: str | None
    ) -> Ref:
        """Do with the current run, which is locked, what the policies say."""
        row, existing = execution.row, execution.key
        if start.request and has_seen(row, start.request):
            return Ref(existing)
        closed = bool(row.close_nanos)
        if closed:
            allowed = start.reuse is ReusePolicy.ALLOW or (
                start.reuse is ReusePolicy.ALLOW_IF_FAILED and row.status in _FAILURES
            )
            if not allowed or start.key.run_id == existing.run_id:
                raise _already_started(existing, current.request_id, closed=True)
            unchanged = CheckRequest(execution.partition, execution.row_key, execution.etag or "")
            return await self._create(start, [unchanged], [], etag)
        if start.conflict is ConflictPolicy.USE_EXISTING:
            if start.request:
                await self._note(execution, start.request)
            return Ref(existing)
        if start.conflict is ConflictPolicy.FAIL or start.key.run_id == existing.run_id:
            raise _already_started(existing, current.request_id, closed=False)
        return await self._terminate_and_create(start, execution, etag)

    async def _note(self, execution: Execution, request: str) -> None:
        """Let the run answer this request from now on, also when it is closed."""
        begin(execution)
        try:
            await self._executions.commit(
                execution, None, keep_claim=False, amend=lambda planner, row: planner.remember(row, request)
            )
        finally:
            end(execution)

    async def _terminate_and_create(
        self, start: Start[ResultT], execution: Execution, etag: str | None
    ) -> Ref:
        executions = self._executions
        tasks = await pending_tasks(self._store, execution, self._withdrawn)
        begin(execution)
        try:
            reason = "replaced by a new run"
            commit = executions.plan(
                execution,
                self._now(),
                amend=termination(reason, tasks, notice=self._notice(execution.partition)),
            )
            seal(execution)
            try:
                ref = await self._create(start, commit.operations, [(execution, commit)], etag)
            except BaseException:
                executions.evict(execution)
                raise
        finally:
            end(execution)
        return ref


def _new(
    registry: Registry,
    key: ExecutionKey,
    partition: str,
    start: Start[ResultT],
    now_nanos: int,
    cluster: Cluster | None,
) -> Execution:
    version = VersionedTransition(0 if cluster is None else cluster.id, 1)
    root = Node.new_root(registry, start.type_id, start.data, version=version)
    # Whoever starts it may start another one with the same object, or try again, and finds that as it was.
    root._data = UNLOADED
    row = ExecutionRow()
    row.CopyFrom(start.row)
    row.start_nanos = now_nanos
    row.start_request_id = start.request_id
    row.root_type = start.type_id
    execution = Execution(key, partition, root, row)
    execution.join(cluster)
    return execution


def _already_started(key: ExecutionKey, request_id: str, *, closed: bool) -> ExecutionAlreadyStartedError:
    return ExecutionAlreadyStartedError(
        f"execution {key.namespace}/{key.id} was started already, by request {request_id!r}",
        run_id=key.run_id,
        closed=closed,
    )
