"""Access to executions: the way from a function of a node to a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, TypeVar

from hsm.engine._cache import Cache
from hsm.engine._commit import Commit, Removed, find_removed
from hsm.engine._execution import Execution
from hsm.engine._plan import plan
from hsm.engine._planner import Amendment
from hsm.engine._rows import QueuedTask, is_detached
from hsm.engine._transaction import (
    begin,
    check_open,
    check_runnable,
    end,
    locate,
    plain,
    refuse_changes,
    roll_back,
    seal,
)
from hsm.engine._translation import translated, unkeepable
from hsm.engine.clock import nanos_of
from hsm.engine.ids import IdSource
from hsm.engine.options import EngineOptions
from hsm.errors import (
    CommitConflictError,
    NotActiveError,
    StaleReferenceError,
    StaleStateError,
)
from hsm.executor import AccessType
from hsm.ref import Ref
from hsm.registry import Registry
from hsm.tree import MissingPart, Node
from persistence import errors as storage
from persistence.store import CheckRequest, EngineStore

__all__ = ["Executions"]

ResultT = TypeVar("ResultT")

_UNOBSERVED: Final = nullcontext()


class _Again:
    """The answer of a try that has to be made again."""


_AGAIN: Final = _Again()


class Executions(Cache):
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
        super().__init__(store, registry, options, shard_count)
        self._ids = ids
        self.committed = committed
        self._retention = None if options.retention is None else nanos_of(options.retention)

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
            result = plain(fn(locate(execution, ref, checked)))
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
                locate(execution, ref, claim)
                refuse_changes(execution)
            except (Exception, MissingPart):  # noqa: BLE001 - not believed of a tree that may be out of date
                roll_back(execution)
            else:
                return
            finally:
                end(execution)
        # Both in one access: once that has ended, the execution may be out of the cache.
        await self.run(ref, _nothing, AccessType.READ, claim=claim, runnable=True)

    async def complete(self, claim: QueuedTask) -> None:
        """Take a task that has run off its node, with its row; or put another row in that one's place."""
        root = Ref(claim.execution, task_id=claim.id)
        try:
            await self.run(root, _nothing, AccessType.WRITE, claim=claim, check_claim=False)
        except NotActiveError as error:
            # Nothing that could be waited for: the task is another cluster's now.
            raise StaleReferenceError(str(error)) from error

    def observed(self, _: Execution, /) -> AbstractContextManager[None]:
        """Entered around a commit of an execution, for those who tell of it."""
        return _UNOBSERVED

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
            SerializationError: a text cannot be kept.
        """
        if execution.foreign:
            check_open(execution)
        try:
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
        except UnicodeEncodeError as error:
            raise unkeepable(error) from error

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


def _nothing(_: Node) -> None:
    """What is done to the tree on behalf of a task that is only looked at, or only ends."""
