"""Once: requests that are carried out on an execution a single time, however often they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from hsm.engine._execution import Execution, decode_row
from hsm.engine._executions import Executions
from hsm.engine._operate import has_seen, operate
from hsm.engine._planner import ANSWERED, Amendment, Planner
from hsm.engine._rows import QueuedTask
from hsm.engine._start import Start, Starter
from hsm.engine._transaction import check_open, locate, plain
from hsm.engine._translation import translated
from hsm.engine.calls import Call
from hsm.errors import (
    DuplicateRequestError,
    ExecutionAlreadyStartedError,
    ExecutionClosedError,
    ExecutionNotFoundError,
)
from hsm.ref import ExecutionKey, Ref
from hsm.tree import Node
from persistence import errors as storage
from persistence.executions import answer_key
from persistence.proto.execution_pb2 import AnswerRow, ExecutionRow
from persistence.store import EngineStore, GetRequest

__all__ = ["Answered", "Signal", "Update", "carry_out", "carry_out_with_start"]

ResultT = TypeVar("ResultT")


class Update(Generic[ResultT]):
    """An update of which it is remembered that it was made, and nothing else.

    Attributes:
        id: of the request; "" if it is not to be remembered.
    """

    _prefix = "update:"

    def __init__(self, request_id: str, fn: Callable[[Node], ResultT]) -> None:
        self.id = request_id
        self._fn = fn

    @property
    def _name(self) -> str:
        return self.id and self._prefix + self.id

    def is_known(self, row: ExecutionRow) -> bool:
        """Whether it was carried out, as far as that is remembered."""
        # The start of the execution may have carried it out, too.
        return self.id != "" and (has_seen(row, self._name) or row.start_request_id == self.id)

    async def recall(self, _: EngineStore, execution: Execution, /) -> ResultT:
        """What whoever asks again is given.

        Raises:
            DuplicateRequestError: nothing was kept.
        """
        raise duplicate(self.id, execution.key)

    def perform(self, node: Node) -> ResultT:
        """Do it."""
        return self._fn(node)

    @property
    def amendment(self) -> Amendment | None:
        """What a commit notes of it, after `perform`."""
        return self._remember if self.id else None

    @property
    def start_amendment(self) -> Amendment | None:
        """The same, for a commit that starts the execution in the name of this request."""
        return None

    def _remember(self, planner: Planner, row: ExecutionRow) -> None:
        planner.remember(row, self._name)


class Signal(Update[None]):
    """An update that has no result: nobody minds if it was made before."""

    _prefix = "signal:"

    def is_known(self, row: ExecutionRow) -> bool:
        """See `Update`."""
        return has_seen(row, self._name)

    async def recall(self, _: EngineStore, execution: Execution, /) -> None:
        """There is nothing to recall."""

    @property
    def start_amendment(self) -> Amendment | None:
        """See `Update`."""
        return self.amendment


class Answered(Update[ResultT]):
    """A call, whose result is kept in a row of its own."""

    _prefix = ANSWERED

    def __init__(self, request_id: str, call: Call[ResultT]) -> None:
        super().__init__(request_id, call.fn)
        self._call = call
        self._answer = b""

    def is_known(self, row: ExecutionRow) -> bool:
        """See `Update`."""
        return has_seen(row, self._name)

    async def recall(self, store: EngineStore, execution: Execution, /) -> ResultT:
        """The result of the first time.

        Raises:
            DuplicateRequestError: that was another method.
        """
        key = answer_key(*execution.key, self._name)
        try:
            found = await store.get(GetRequest(partition=execution.partition, key=key))
        except storage.PersistenceError as error:
            raise translated(error) from error
        if found.data is None:
            raise duplicate(self.id, execution.key, "its result is lost")
        row = decode_row(AnswerRow, key, found.data)
        if row.method != self._call.name:
            raise duplicate(self.id, execution.key, f"it was a call of {row.method!r}")
        return self._call.codec.deserialize(row.result)

    def perform(self, node: Node) -> ResultT:
        """See `Update`. The result is the one that others will be given, and no part of the tree."""
        codec = self._call.codec
        self._answer = codec.serialize(super().perform(node))
        return codec.deserialize(self._answer)

    @property
    def start_amendment(self) -> Amendment | None:
        """See `Update`."""
        return self.amendment

    def _remember(self, planner: Planner, row: ExecutionRow) -> None:
        planner.remember(row, self._name, AnswerRow(method=self._call.name, result=self._answer))


async def carry_out(
    executions: Executions,
    store: EngineStore,
    ref: Ref,
    request: Update[ResultT],
    *,
    running: bool = False,
    claim: QueuedTask | None = None,
    keep_claim: bool = False,
) -> ResultT:
    """Carry out a request, unless it was carried out before; its result.

    That it is known is told before anything else: what it refers to has moved on since, by its own doing.

    Raises:
        ExecutionClosedError: with `running`, the execution is closed; else it was terminated.
    """
    known: list[ResultT] = []

    async def before(execution: Execution) -> None:
        known.clear()
        if request.is_known(execution.row):
            known.append(await request.recall(store, execution))

    def act(execution: Execution) -> tuple[ResultT, Amendment | None]:
        if known:
            return known[0], None
        if running and execution.row.close_nanos:
            raise ExecutionClosedError(f"execution {execution.key.namespace}/{execution.key.id} is closed")
        if execution.held:
            check_open(execution)
        result = plain(request.perform(locate(execution, ref, claim)))
        return result, request.amendment

    return await operate(executions, ref.execution, act, before=before, claim=claim, keep_claim=keep_claim)


async def carry_out_with_start(
    executions: Executions,
    store: EngineStore,
    starter: Starter,
    start: Start[ResultT],
    request: Update[ResultT],
) -> ResultT:
    """Carry out a request on the running execution, or on a new one, started in the same commit."""
    key, first_ref = start.key, Ref(start.key)
    while True:
        try:
            return await carry_out(executions, store, first_ref, request, running=True)
        except (ExecutionNotFoundError, ExecutionClosedError):
            pass
        try:
            ref = await starter.start(start)
        except ExecutionAlreadyStartedError as error:
            if error.closed or key.run_id not in {"", error.run_id}:
                # The run that is named will not be there, however often it is looked for.
                raise
            continue
        if start.started:
            return start.results[-1]
        # The same request has started it meanwhile.
        try:
            return await carry_out(executions, store, ref, request, running=True)
        except ExecutionClosedError as error:
            raise duplicate(request.id, key._replace(run_id=ref.execution.run_id)) from error


def duplicate(request_id: str, key: ExecutionKey, reason: str = "") -> DuplicateRequestError:
    """The error for a request that was carried out already."""
    text = f"request {request_id!r} was carried out already"
    return DuplicateRequestError(f"{text}: {reason}" if reason else text, run_id=key.run_id)
