"""Access to executions: the cache of trees, the lock of each, and the way from a function to a commit."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, TypeVar

from hsm.engine._commit import Commit, Removed, find_removed
from hsm.engine._execution import Execution, decode_row, load_execution, load_part
from hsm.engine._plan import plan
from hsm.engine._planner import Amendment
from hsm.engine._rows import QueuedTask, is_detached
from hsm.engine._transaction import (
    begin,
    check_open,
    check_pending,
    check_runnable,
    end,
    locate,
    refuse_changes,
    roll_back,
    seal,
)
from hsm.engine.clock import nanos_of
from hsm.engine.ids import IdSource
from hsm.engine.options import EngineOptions
from hsm.errors import (
    CommitConflictError,
    CommitOutcomeUnknownError,
    ExecutionNotFoundError,
    NotActiveError,
    ReentrantTransitionError,
    StaleReferenceError,
    StaleStateError,
    StorageUnavailableError,
    TransactionTooLargeError,
)
from hsm.executor import AccessType
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import MissingPart, Node
from persistence import errors as storage
from persistence.executions import current_run_key, shard_of, shard_partition
from persistence.proto.execution_pb2 import CurrentRun
from persistence.store import CheckRequest, EngineStore, GetRequest

__all__ = ["Executions", "translated"]

ResultT = TypeVar("ResultT")

_EVICTED_AT_ONCE: Final = 2
_UNOBSERVED: Final = nullcontext()
_WHOLE_TREE: Final = MissingPart((), subtree=True)


class _Again:
    """The answer of a try that has to be made again."""


_AGAIN: Final = _Again()


class Executions:
    """The executions of one store, as far as this process has them in memory.

    Everything here goes by the version row: a cached tree is only a guess, a commit checks it, a read
    compares it first, and an error that a tree out of date may have caused is not believed.
    """

    def __init__(
        self,
        store: EngineStore,
        registry: Registry,
        options: EngineOptions,
        ids: IdSource,
        shard_count: int,
        committed: Callable[[Execution, Commit], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._options = options
        self._ids = ids
        self._shard_count = shard_count
        self.committed = committed
        self.loaded: Callable[[Execution], None] = _nothing_to_tell
        self._retention = nanos_of(options.retention) if options.retention is not None else 0
        self.cluster = options.cluster
        self._cache: OrderedDict[ExecutionKey, Execution] = OrderedDict()

    def partition(self, key: ExecutionKey) -> str:
        """The partition of an execution."""
        return shard_partition(shard_of(key.namespace, key.id, self._shard_count))

    async def resolve(self, key: ExecutionKey) -> ExecutionKey:
        """The key with its run id.

        Raises:
            ExecutionNotFoundError: the id has no run.
        """
        if key.run_id:
            return key
        row = current_run_key(key.namespace, key.id)
        try:
            found = await self._store.get(GetRequest(partition=self.partition(key), key=row))
        except storage.PersistenceError as error:
            raise translated(error) from error
        if found.data is None:
            raise ExecutionNotFoundError(f"there is no execution {key.namespace}/{key.id}")
        return key._replace(run_id=decode_row(CurrentRun, row, found.data).run_id)

    def cached(self, key: ExecutionKey) -> Execution | None:
        """An execution that is in memory."""
        return self._cache.get(key)

    def admit(self, execution: Execution) -> None:
        """Put an execution into the cache, and one or two that were used long ago out of it."""
        cache = self._cache
        cache[execution.key] = execution
        if len(cache) > self._options.cached_executions:
            for other in list(itertools.islice(cache.values(), _EVICTED_AT_ONCE)):
                if other is execution or other.lock.locked():
                    # In use; nor may it keep the others from being looked at.
                    cache.move_to_end(other.key)
                else:
                    self.evict(other)

    def retire(self, execution: Execution) -> None:
        """Let go of an execution that is closed and waits for nothing: it will hardly be asked for again."""
        if execution.row.close_nanos and not execution.decoded:
            self.evict(execution)

    def evict(self, execution: Execution) -> None:
        """Take an execution out of the cache; whoever waits for it loads it anew."""
        execution.stale = True
        if self._cache.get(execution.key) is execution:
            del self._cache[execution.key]

    def forget(self, key: ExecutionKey) -> None:
        """Read an execution anew when it is needed next."""
        execution = self._cache.get(key)
        if execution is not None:
            self.evict(execution)

    async def acquire(self, key: ExecutionKey, *, fresh: bool) -> Execution:
        """The execution, locked; if `fresh`, as it is in the store now.

        Raises:
            ReentrantTransitionError: this asyncio task holds it already.
        """
        while True:
            execution = self._cache.get(key)
            loaded = False
            if execution is None:
                execution, loaded = await self._load(key)
            else:
                self._cache.move_to_end(key)
            if execution.owner is not None and execution.owner is asyncio.current_task():
                raise ReentrantTransitionError(
                    f"execution {key.namespace}/{key.id} is held by this task already"
                )
            await execution.lock.acquire()
            try:
                usable = not execution.stale and (loaded or not fresh or await self._is_current(execution))
            except BaseException:
                execution.lock.release()
                raise
            if usable:
                return execution
            self.evict(execution)
            execution.lock.release()

    async def _load(self, key: ExecutionKey) -> tuple[Execution, bool]:
        """The execution, and whether it was read just now: somebody may have loaded it meanwhile."""
        try:
            execution = await load_execution(
                self._store, self._registry, key, self.partition(key), self._options.loaded_nodes
            )
        except storage.PersistenceError as error:
            raise translated(error) from error
        other = self._cache.get(key)
        if other is not None:
            return other, False
        execution.join(self.cluster)
        self.admit(execution)
        self.loaded(execution)
        return execution, True

    async def _is_current(self, execution: Execution) -> bool:
        try:
            found = await self._store.get(GetRequest(partition=execution.partition, key=execution.row_key))
        except storage.PersistenceError as error:
            raise translated(error) from error
        return found.etag == execution.etag

    async def run(
        self,
        ref: Ref,
        fn: Callable[[Node], ResultT],
        access: AccessType,
        *,
        claim: QueuedTask | None = None,
        keep_claim: bool = False,
        check_claim: bool = True,
        runnable: bool = False,
    ) -> ResultT:
        """Run `fn` on the node of `ref`, and commit what it did if `access` is WRITE.

        With `check_claim` False, the claim may have become pointless; with `runnable`, tasks of the node must
        be allowed to run.
        """
        checked = claim if check_claim else None
        key = ref.execution if ref.execution.run_id else await self.resolve(ref.execution)
        reading = access is AccessType.READ
        retried = False
        while True:
            execution = await self.acquire(key, fresh=reading)
            try:
                answer = await self._try(execution, ref, fn, reading, checked, claim, keep_claim, runnable)
            except CommitConflictError:
                self.evict(execution)
                continue
            except StaleStateError:
                if retried:
                    raise
                retried = True
                self.evict(execution)
                continue
            finally:
                execution.lock.release()
            if not isinstance(answer, _Again):
                return answer

    async def _try(
        self,
        execution: Execution,
        ref: Ref,
        fn: Callable[[Node], ResultT],
        reading: bool,
        checked: QueuedTask | None,
        claim: QueuedTask | None,
        keep_claim: bool,
        runnable: bool,
    ) -> ResultT | _Again:
        begin(execution, reading=reading)
        try:
            if execution.held and not reading and (checked is not None or not is_detached(claim)):
                check_open(execution)
            result = fn(locate(execution, ref, checked))
            if runnable:
                check_runnable(execution, ref, claim)
            if reading:
                refuse_changes(execution)
            elif claim is not None or execution.root.dirty:
                await self.commit(execution, claim, keep_claim=keep_claim)
            else:
                seal(execution)
                if not await self._is_current(execution):
                    self.evict(execution)
                    return _AGAIN
        except MissingPart as part:
            roll_back(execution)
            if not await self.load_part(execution, part):
                self.evict(execution)
            return _AGAIN
        except (CommitConflictError, asyncio.CancelledError):
            roll_back(execution)
            raise
        except Exception:
            roll_back(execution)
            # The tree may be out of date, and the error nothing but a consequence of that.
            if not reading and not execution.stale and not await self._is_current(execution):
                self.evict(execution)
                return _AGAIN
            raise
        except BaseException:
            roll_back(execution)
            raise
        finally:
            end(execution)
        return result

    async def validate(self, ref: Ref, claim: QueuedTask) -> None:
        """Check a task before it runs, against the tree in memory if there is one: a first sieve, no more.

        Raises:
            StaleReferenceError: the task has become pointless.
            ExecutionClosedError: the execution was terminated.
            PausedError: the machine is paused.
        """
        execution = self._cache.get(ref.execution)
        if execution is not None and execution.held:
            # What is told of it has to be true.
            execution = None
        if claim.is_fresh and execution is not None and execution.etag == claim.etag:
            # Nothing was committed since the transition that asked for the task, which checked it.
            return
        if execution is not None and not execution.lock.locked():
            begin(execution)
            try:
                check_pending(locate(execution, ref, claim), claim)
                refuse_changes(execution)
            except (Exception, MissingPart):  # noqa: BLE001 - not believed of a tree that may be out of date
                roll_back(execution)
            else:
                return
            finally:
                end(execution)
        # Both in one access: once that has ended, the execution may be out of the cache.
        await self.run(
            ref, lambda node: check_pending(node, claim), AccessType.READ, claim=claim, runnable=True
        )

    async def complete(self, claim: QueuedTask) -> None:
        """Take a task that has run off its node, with its row; or put another row in that one's place."""
        root = Ref(claim.execution, task_id=claim.id)
        try:
            await self.run(root, _nothing, AccessType.WRITE, claim=claim, check_claim=False)
        except NotActiveError as error:
            # Nothing that could be waited for: the task is another cluster's now.
            raise StaleReferenceError(str(error)) from error

    async def load_part(self, execution: Execution, part: MissingPart) -> bool:
        """Load a part that is missing; False if the execution has moved on meanwhile."""
        try:
            return await load_part(self._store, execution, part)
        except storage.PersistenceError as error:
            raise translated(error) from error

    def observed(self, _: Execution, /) -> AbstractContextManager[None]:
        """Entered around a commit of an execution, for those who tell of it."""
        return _UNOBSERVED

    async def load_whole(self, execution: Execution) -> bool:
        """Load all that is not loaded; False if the execution has moved on meanwhile."""
        return execution.table.complete or await self.load_part(execution, _WHOLE_TREE)

    def plan(
        self,
        execution: Execution,
        now_nanos: int,
        *,
        claim: QueuedTask | None = None,
        keep_claim: bool = False,
        removed: Sequence[Removed] = (),
        amend: Amendment | None = None,
        refresh: bool = False,
    ) -> Commit:
        """See `plan`.

        Raises:
            NotActiveError: another cluster writes to the execution.
        """
        if execution.foreign:
            check_open(execution)
        return plan(
            self._registry,
            self._ids,
            execution,
            now_nanos,
            claim=claim,
            keep_claim=keep_claim,
            removed=removed,
            amend=amend,
            retention_nanos=self._retention,
            remembered=self._options.remembered_requests,
            refresh=refresh,
        )

    async def commit(
        self,
        execution: Execution,
        claim: QueuedTask | None,
        *,
        keep_claim: bool,
        amend: Amendment | None = None,
        refresh: bool = False,
    ) -> None:
        """Write what has been done to the tree, and what `amend` adds to it.

        Raises:
            CommitConflictError: the execution has moved on.
            StaleReferenceError: the claim has run already.
            TransactionTooLargeError: too much for one transaction of the store.
        """
        removed: list[Removed] = []
        state = execution.root._state
        state.check()
        if state.removed:
            seal(execution)
            try:
                removed = await find_removed(self._store, execution, self._options.delete_rows)
            except storage.PersistenceError as error:
                raise translated(error) from error
            state.sealed = False
        now = self._options.clock.time_ns()
        commit = self.plan(
            execution,
            now,
            claim=claim,
            keep_claim=keep_claim,
            removed=removed,
            amend=amend,
            refresh=refresh,
        )
        seal(execution)
        try:
            etag = await self._store.multi(commit.operations)
        except storage.ETagMismatchError as error:
            commit.revert()
            if claim is not None and error.key == claim.key:
                claim.spent = True
                raise StaleReferenceError(f"task {claim.id} has run already") from error
            raise CommitConflictError(
                f"execution {execution.key.namespace}/{execution.key.id} was changed by somebody else"
            ) from error
        except storage.PersistenceError as error:
            commit.revert()
            if isinstance(error, storage.CommitOutcomeUnknownError):
                self.evict(execution)
            raise translated(error) from error
        except asyncio.CancelledError:
            self.evict(execution)
            await self._await_outcome(execution)
            raise
        except Exception:
            # A store that breaks its contract: what it has done, only it can tell.
            commit.revert()
            self.evict(execution)
            raise
        commit.done(etag)
        state.clear()
        if claim is not None and not keep_claim:
            claim.spent = True
            claim.instead_etag = etag
        self.committed(execution, commit)
        self.retire(execution)

    async def _await_outcome(self, execution: Execution) -> None:
        """Return when the commit that was cancelled is through: a check queues up behind it."""
        check = CheckRequest(execution.partition, execution.row_key, execution.etag or "0" * 16)
        barrier = asyncio.ensure_future(self._store.multi([check]))
        while not barrier.done():
            try:
                await asyncio.wait([barrier])
            except asyncio.CancelledError:
                continue
        barrier.exception()


def _nothing_to_tell(_: Execution) -> None:
    """For those who do not care which executions are read."""


def _nothing(_: Node) -> None:
    """What a task does to the tree that does nothing but end."""


def translated(error: storage.PersistenceError) -> Exception:
    """The error of this package that tells what an error of the store means for a task."""
    if isinstance(error, storage.TransactionTooLargeError):
        return TransactionTooLargeError(str(error))
    if isinstance(error, storage.CommitOutcomeUnknownError):
        return CommitOutcomeUnknownError(str(error))
    if isinstance(error, storage.StoreUnavailableError):
        return StorageUnavailableError(str(error))
    return error
