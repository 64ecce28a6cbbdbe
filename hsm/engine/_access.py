"""Access for a block: `async with engine.access(ref, AccessType.WRITE) as node`."""

from __future__ import annotations

import asyncio
from types import TracebackType

from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._rows import QueuedTask
from hsm.engine._transaction import begin, check_open, end, locate, refuse_changes, roll_back
from hsm.errors import CommitConflictError
from hsm.executor import AccessType
from hsm.ref import Ref
from hsm.tree import Node

__all__ = ["Access"]


class Access:
    """A block with access to a node. The whole tree is loaded, because the block cannot run twice."""

    __slots__ = ("_claim", "_execution", "_executions", "_keep_claim", "_reading", "_ref")

    def __init__(
        self,
        executions: Executions,
        ref: Ref,
        access: AccessType,
        claim: QueuedTask | None,
        *,
        keep_claim: bool,
    ) -> None:
        self._executions = executions
        self._ref = ref
        self._reading = access is AccessType.READ
        self._claim = claim
        self._keep_claim = keep_claim
        self._execution: Execution | None = None

    async def __aenter__(self) -> Node:
        key = await self._executions.resolve(self._ref.execution)
        while True:
            execution = await self._executions.acquire(key, fresh=True)
            try:
                if await self._executions.load_whole(execution):
                    begin(execution, reading=self._reading)
                    if execution.held and not self._reading:
                        check_open(execution)
                    node = locate(execution, self._ref, self._claim)
                    execution.owner = asyncio.current_task()
                    self._execution = execution
                    return node
            except BaseException:
                end(execution)
                execution.lock.release()
                raise
            self._executions.evict(execution)
            execution.lock.release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        execution = self._execution
        assert execution is not None
        try:
            if kind is not None:
                roll_back(execution)
            elif self._reading:
                refuse_changes(execution)
            elif self._claim is not None or execution.root.dirty:
                await self._executions.commit(execution, self._claim, keep_claim=self._keep_claim)
        except CommitConflictError:
            roll_back(execution)
            self._executions.evict(execution)
            raise
        except BaseException:
            roll_back(execution)
            raise
        finally:
            end(execution)
            execution.owner = None
            execution.lock.release()
