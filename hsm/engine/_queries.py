"""Queries: listings of executions and dead letters, and one tree in full."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import attrs
from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from hsm.engine._children import DETACHED
from hsm.engine._execution import decode_row, load_execution
from hsm.engine._executions import Executions
from hsm.engine._family import parent_of
from hsm.engine._lookup import find_rows
from hsm.engine._rows import QueuedTask, kind_of
from hsm.engine._search import read_value
from hsm.engine._transaction import begin
from hsm.engine._translation import translated
from hsm.engine.clock import from_nanos
from hsm.engine.info import DeadLetter, ExecutionInfo, ExecutionTree, NodeInfo, PendingTask
from hsm.errors import SerializationError
from hsm.machine import Key, Lifecycle, MachineDefinition, MachineType, state_name
from hsm.ref import ExecutionKey
from hsm.registry import Registry
from hsm.tree import Node
from persistence.errors import PersistenceError
from persistence.executions import (
    AFTER_SLASH,
    dead_letter_key,
    parked_key,
    parse_execution_key,
)
from persistence.proto.execution_pb2 import (
    DeadLetterRow,
    ExecutionRow,
    ExecutionStatus,
    ParkedTaskRow,
    TaskRow,
)
from persistence.proto.hsm_pb2 import StateMachineTask
from persistence.store import EngineStore, Item

__all__ = ["ALL_ROWS", "OpenRegistry", "dead_letters", "execution_info", "execution_tree"]

_LIFECYCLE: Final = {
    ExecutionStatus.EXECUTION_STATUS_COMPLETED: Lifecycle.COMPLETED,
    ExecutionStatus.EXECUTION_STATUS_FAILED: Lifecycle.FAILED,
    ExecutionStatus.EXECUTION_STATUS_TERMINATED: Lifecycle.TERMINATED,
}

ALL_ROWS: Final = 2**31 - 1
# What waits for its next try is among the first timers of its shard.
_ROWS_TO_LOOK_AT: Final = 10_000


class _UnknownDefinition:
    """Stands for a type of machine that is not registered: of its data, only the size can be told."""

    def __init__(self, type_id: int) -> None:
        self.type = MachineType(type_id, str(type_id))

    def serialize(self, data: str, /) -> bytes:
        raise NotImplementedError

    def deserialize(self, data: bytes, /) -> str:
        return f"{len(data)} bytes, of a type that is not registered"


class OpenRegistry(Registry):
    """A registry of all types of machines there can be, so that any tree can be looked at."""

    def __init__(self, known: Registry) -> None:
        super().__init__()
        self._known = known

    def machine(self, type_id: int) -> MachineDefinition[Any]:
        return self._known.machine(type_id) or _UnknownDefinition(type_id)

    def required_machine(self, type_id: int) -> MachineDefinition[Any]:
        return self.machine(type_id)


def execution_info(key: str, value: bytes) -> ExecutionInfo:
    """What a listing tells of an execution, from its row."""
    try:
        row = decode_row(ExecutionRow, key, value)
    except SerializationError as error:
        # One bad row must not hide all the others.
        return ExecutionInfo(
            ExecutionKey(*parse_execution_key(key)), Lifecycle.RUNNING, "", from_nanos(0), None, str(error)
        )
    return _info_of(ExecutionKey(*parse_execution_key(key)), row)


def _info_of(key: ExecutionKey, row: ExecutionRow) -> ExecutionInfo:
    return ExecutionInfo(
        key,
        _LIFECYCLE.get(row.status, Lifecycle.RUNNING),
        row.state,
        from_nanos(row.start_nanos),
        from_nanos(row.close_nanos) if row.close_nanos else None,
        close_reason=row.close_reason,
        paused=bool(row.paused),
        attributes={name: read_value(value) for name, value in row.search_attributes.items()},
        memo=row.memo,
        parent=parent_of(row),
    )


async def execution_tree(
    store: EngineStore,
    registry: Registry,
    executions: Executions,
    key: ExecutionKey,
    in_memory: Callable[[str], QueuedTask | None],
) -> ExecutionTree:
    """One execution with all its machines and their pending tasks.

    The row of a task may have moved; `in_memory` knows where, if this process has it.
    """
    key = await executions.resolve(key)
    partition = executions.partition(key)
    described: list[NodeInfo] = []
    try:
        # Not the tree in memory, which leaves out what is not registered.
        execution = await load_execution(store, OpenRegistry(registry), key, partition, ALL_ROWS)
        begin(execution, reading=True)
        terminated = execution.row.status == ExecutionStatus.EXECUTION_STATUS_TERMINATED
        nodes = [
            # The other tasks of one that is terminated run no more, though its machines still name them.
            (node, [task for task in tasks if not terminated or task.type in DETACHED])
            for node, tasks in _describe(execution.root)
        ]
        waiting = [task for _, tasks in nodes for task in tasks]
        rows = await find_rows(store, partition, key, waiting, in_memory, limit=_ROWS_TO_LOOK_AT)
        for node, tasks in nodes:
            pending = tuple([_pending(registry, key, task, rows.get(task.id)) for task in tasks])
            state = node.state or ("" if node.path else execution.row.state)
            described.append(attrs.evolve(node, state=state, tasks=pending))
    except PersistenceError as error:
        raise translated(error) from error
    return ExecutionTree(_info_of(key, execution.row), tuple(described))


def _describe(root: Node) -> list[tuple[NodeInfo, tuple[StateMachineTask, ...]]]:
    described: list[tuple[NodeInfo, tuple[StateMachineTask, ...]]] = []
    for node in root.walk():
        try:
            data: object = node.data(object)
            text = MessageToString(data, as_one_line=True) if isinstance(data, Message) else str(data)
            state = state_name(data)
        except SerializationError as error:
            text, state = str(error), ""
        info = NodeInfo(node.path, node.machine_type, state, node.transition_count, text, ())
        described.append((info, node._tasks))
    return described


def _pending(
    registry: Registry, execution: ExecutionKey, task: StateMachineTask, item: Item | None
) -> PendingTask:
    registration = registry.task(task.type)
    name = registration.task.type.name if registration is not None else str(task.type)
    kind = kind_of(task.kind)
    if item is None:
        return PendingTask(task.id, name, kind)
    if item.key == dead_letter_key(task.id):
        letter = decode_row(DeadLetterRow, item.key, item.value)
        return PendingTask(task.id, name, kind, letter.task.failures, None, f"dead-lettered: {letter.error}")
    if item.key == parked_key(*execution, task.id):
        row = decode_row(ParkedTaskRow, item.key, item.value).task
    else:
        row = decode_row(TaskRow, item.key, item.value)
    not_before = from_nanos(row.not_before_nanos) if row.not_before_nanos else None
    return PendingTask(task.id, name, kind, row.failures, not_before, row.last_error)


async def dead_letters(
    store: EngineStore, registry: Registry, partitions: Sequence[str]
) -> AsyncIterator[DeadLetter]:
    """All dead letters, shard by shard, oldest task first."""
    try:
        for partition in partitions:
            async for item in store.scan(partition, "d/", "d" + AFTER_SLASH):
                yield _dead_letter(registry, partition, item)
    except PersistenceError as error:
        raise translated(error) from error


def _dead_letter(registry: Registry, partition: str, item: Item) -> DeadLetter:
    try:
        row = decode_row(DeadLetterRow, item.key, item.value)
    except SerializationError as error:
        row = DeadLetterRow(
            undecodable=item.value, error_type=type(error).__name__, error=f"not even this row: {error}"
        )
    task = row.task
    readable = not row.undecodable
    registration = registry.task(task.info.type)
    return DeadLetter(
        task_id=item.key.removeprefix("d/"),
        execution=ExecutionKey(task.execution.namespace, task.execution.id, task.execution.run_id)
        if readable
        else None,
        path=tuple(Key(key.type, key.id) for key in task.info.ref.path),
        task_type=registration.task.type.name if registration is not None else str(task.info.type),
        kind=kind_of(task.kind) if readable else None,
        attempts=task.failures,
        error_type=row.error_type,
        error=row.error,
        time=from_nanos(row.time_nanos),
        partition=partition,
        etag=item.etag,
    )
