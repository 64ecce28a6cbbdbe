"""Requests: starting executions, and what is done to them under a request id."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hsm.engine._executions import Executions
from hsm.engine._once import Answered, Signal, Update, carry_out, carry_out_with_start
from hsm.engine._rows import QueuedTask
from hsm.engine._start import Start, Starter
from hsm.engine._transaction import plain
from hsm.engine.calls import Call
from hsm.engine.policies import ConflictPolicy, ReusePolicy
from hsm.machine import MachineType
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import Node
from persistence.proto.execution_pb2 import ExecutionRow
from persistence.store import EngineStore

__all__ = ["Requests"]

ResultT = TypeVar("ResultT")


class Requests:
    """The part of an engine that starts executions and carries out requests."""

    _store: EngineStore
    _executions: Executions
    _registry: Registry
    _starter: Starter

    async def start(
        self,
        key: ExecutionKey,
        data: object,
        *,
        machine_type: MachineType | None = None,
        request_id: str = "",
        on_start: Callable[[Node], object] | None = None,
        conflict: ConflictPolicy = ConflictPolicy.FAIL,
        reuse: ReusePolicy = ReusePolicy.REJECT,
        history: bool = False,
        memo: bytes = b"",
    ) -> Ref:
        """Start an execution and return a reference to its root.

        A start with the request id of an earlier one returns what that has started, and changes nothing.

        Args:
            key: namespace and id; the run id is made if it is empty.
            data: of the root, which is given a copy.
            machine_type: of the root; found by the class of `data` if it is not given.
            request_id: makes the start idempotent.
            on_start: first transitions, and children, in the same commit.
            conflict: what to do if the id has a run that is running: refuse, return that one, or terminate it
                in the same commit.
            reuse: whether the id may have another run after one that is closed.
            history: keep what every commit changes, for `history` and `tree_at`; each then writes the changed
                machines twice.
            memo: whatever whoever lists the execution should know of it.

        Raises:
            ExecutionAlreadyStartedError: another request has started an execution with this id.
            NotRegisteredError: the machine type is not registered, or cannot be told from the data.
        """
        _check_key(key)
        type_id = self._type_id(data, machine_type)
        row = ExecutionRow(keeps_history=history, memo=memo)
        return await self._starter.start(
            Start(key, type_id, data, request_id, on_start, conflict, reuse, row)
        )

    async def call(
        self, ref: Ref, call: Call[ResultT], *, request_id: str, keep_task: bool = False
    ) -> ResultT:
        """Carry out a call on the machine that `ref` points to, once, and return its result.

        What the method does and what it returns are one commit. Whoever makes the request again, in whatever
        process, after `CommitOutcomeUnknownError`, a crash or an answer that did not arrive, gets the result
        of the first time, and nothing is changed: not even if the reference is out of date by now, or the
        execution is closed. Name the run in such a reference, or another run may be asked. An execution
        remembers the last `EngineOptions.remembered_requests` requests. A call that raises changes nothing,
        and is not remembered.

        Args:
            ref: to the machine; under the reference of a queue task, that task ends with the commit.
            call: a `Method` with its arguments.
            request_id: one for each request, chosen by whoever makes it.
            keep_task: as in `Environment.update`.

        Raises:
            DuplicateRequestError: the request id was used for another method.
            SerializationError: the result is not of the class that the method says.
            ExecutionClosedError: the execution was terminated.
            ExecutionNotFoundError, StateMachineNotFoundError, StaleReferenceError: as for `update`.
        """
        _check_given(request_id)
        claim = self._claim(ref, keep=keep_task)
        request = Answered(request_id, call)
        return await carry_out(self._executions, self._store, ref, request, claim=claim, keep_claim=keep_task)

    async def signal(self, ref: Ref, fn: Callable[[Node], object], *, request_id: str) -> None:
        """Run `fn` on the machine that `ref` points to, and commit what it does, once.

        It is as `call`, for those who want no answer: what `fn` returns is not kept, and a request that was
        carried out already does nothing. `fn` may be a `Call`.

        Raises:
            ExecutionClosedError: the execution was terminated.
            ExecutionNotFoundError, StateMachineNotFoundError, StaleReferenceError: as for `update`.
        """
        _check_given(request_id)
        claim = self._claim(ref)
        request = Signal(request_id, _without_result(fn))
        await carry_out(self._executions, self._store, ref, request, claim=claim)

    async def update_with_start(
        self,
        key: ExecutionKey,
        data: object,
        fn: Callable[[Node], ResultT],
        *,
        machine_type: MachineType | None = None,
        request_id: str = "",
        on_start: Callable[[Node], object] | None = None,
        reuse: ReusePolicy = ReusePolicy.REJECT,
    ) -> ResultT:
        """Run `fn` on the root of the running execution, or on that of a new one; its result.

        Start and update are one commit: nobody sees an execution that `fn` has not run on. `fn` may run
        again, as in `update`. The other arguments are those of `start`.

        Raises:
            DuplicateRequestError: a request with this id was carried out already; see `call_with_start`.
            ExecutionAlreadyStartedError: the last run is closed, and `reuse` does not allow another one; or
                another run than the one that `key` names is running.
            NotRegisteredError: the machine type is not registered, or cannot be told from the data.
        """
        request = Update(request_id, fn)
        return await self._with_start(key, data, request, machine_type, on_start, reuse)

    async def call_with_start(
        self,
        key: ExecutionKey,
        data: object,
        call: Call[ResultT],
        *,
        request_id: str,
        machine_type: MachineType | None = None,
        on_start: Callable[[Node], object] | None = None,
        reuse: ReusePolicy = ReusePolicy.REJECT,
    ) -> ResultT:
        """Carry out a call on the root of the running execution, or on that of a new one; its result.

        As `update_with_start`, but whoever makes the request again gets the result of the first time.

        Raises:
            DuplicateRequestError: the request id was used for another method, or is not remembered any more.
            ExecutionAlreadyStartedError: the last run is closed, and `reuse` does not allow another one; or
                another run than the one that `key` names is running.
            NotRegisteredError: the machine type is not registered, or cannot be told from the data.
        """
        _check_given(request_id)
        request = Answered(request_id, call)
        return await self._with_start(key, data, request, machine_type, on_start, reuse)

    async def signal_with_start(
        self,
        key: ExecutionKey,
        data: object,
        fn: Callable[[Node], object],
        *,
        request_id: str,
        machine_type: MachineType | None = None,
        on_start: Callable[[Node], object] | None = None,
        reuse: ReusePolicy = ReusePolicy.REJECT,
    ) -> None:
        """Signal the root of the running execution, or that of a new one; raises as `call_with_start`."""
        _check_given(request_id)
        request = Signal(request_id, _without_result(fn))
        await self._with_start(key, data, request, machine_type, on_start, reuse)

    async def _with_start(
        self,
        key: ExecutionKey,
        data: object,
        request: Update[ResultT],
        machine_type: MachineType | None,
        on_start: Callable[[Node], object] | None,
        reuse: ReusePolicy,
    ) -> ResultT:
        def first(root: Node) -> ResultT:
            if on_start is not None:
                on_start(root)
            return request.perform(root)

        start = Start(
            key,
            self._type_id(data, machine_type),
            data,
            request.id,
            first,
            reuse=reuse,
            amend=request.start_amendment,
        )
        return await carry_out_with_start(self._executions, self._store, self._starter, start, request)

    def _type_id(self, data: object, machine_type: MachineType | None) -> int:
        return self._registry.type_of(data) if machine_type is None else machine_type.id

    # What the engine has

    def _claim(self, ref: Ref, *, keep: bool = False) -> QueuedTask | None:
        raise NotImplementedError


def _check_key(key: object) -> None:
    """The id alone is what one tries first."""
    if not isinstance(key, ExecutionKey):
        raise TypeError(f"{key!r} names no execution: `ExecutionKey(namespace, id)` does")


def _check_given(request_id: str) -> None:
    if not request_id:
        raise ValueError("a request needs an id to be carried out once; without one, use `update`")


def _without_result(fn: Callable[[Node], object]) -> Callable[[Node], None]:
    def perform(node: Node) -> None:
        plain(fn(node))

    return perform
