"""Executions in memory: the tree, the version row it stands on, and how both are read from the store."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from hsm.engine._table import RowTable, row_segments
from hsm.engine.cluster import Cluster
from hsm.engine.telemetry import TraceContext
from hsm.errors import ExecutionNotFoundError, SerializationError
from hsm.machine import VersionedTransition
from hsm.ref import ExecutionKey
from hsm.registry import Registry
from hsm.task import Task
from hsm.tree import MissingPart, Node
from persistence.executions import (
    AFTER_SLASH,
    execution_keys,
    prefix_end,
)
from persistence.proto.execution_pb2 import ExecutionRow, ExecutionStatus
from persistence.store import EngineStore, GetRequest

__all__ = ["Execution", "decode_row", "is_foreign", "is_held", "load_execution", "load_part"]

_MessageT = TypeVar("_MessageT", bound=Message)


# What is made here has no rows yet that anybody could have to read.
_NOTHING_TO_READ: Final = RowTable("")
_NOTHING_TO_READ.complete = True
# The ordinal that the first machine below the root is given: none was ever there.
_ROOT_ALONE: Final = 1
_TERMINATED: Final = ExecutionStatus.EXECUTION_STATUS_TERMINATED


class Execution:
    """One run of an execution: its tree and what the tree was built from.

    Attributes:
        key: with the run id.
        partition: where its rows are.
        row: the execution's row as it stands in the store.
        row_key: its key.
        etag: its etag; every commit checks it.
        history: the last transition of each failover version; the last entry is the present one.
        root: the tree, sealed while nobody has access.
        table: the rows that the tree was loaded from.
        decoded: the pending tasks of its nodes by id, as far as they have been decoded.
        lock: held by whoever has access.
        owner: the asyncio task that holds the lock over an await of its own.
        stale: the object is out of the cache and must not be used again.
        held: it is terminated, paused or foreign: more than its tree decides about what may be done.
        cluster: which cluster this is, if there are several.
        foreign: another cluster writes to it.
        trace: of the commit that is being made; goes into the rows of its tasks.
    """

    __slots__ = (
        "cluster",
        "decoded",
        "etag",
        "foreign",
        "held",
        "history",
        "key",
        "lock",
        "owner",
        "partition",
        "prefix",
        "root",
        "row",
        "row_key",
        "stale",
        "table",
        "trace",
    )

    def __init__(self, key: ExecutionKey, partition: str, root: Node, row: ExecutionRow) -> None:
        self.key = key
        self.partition = partition
        self.row_key, self.prefix = execution_keys(*key)
        self.etag: str | None = None
        self.history: tuple[VersionedTransition, ...] = ()
        self.root = root
        self.table = _NOTHING_TO_READ
        self.row = row
        self.decoded: dict[str, Task] = {}
        self.lock = asyncio.Lock()
        self.owner: asyncio.Task[Any] | None = None
        self.stale = False
        self.held = is_held(row)
        self.cluster: Cluster | None = None
        self.foreign = False
        self.trace: TraceContext | None = None

    def join(self, cluster: Cluster | None) -> None:
        """Note which cluster this is."""
        self.cluster = cluster
        self.foreign = is_foreign(self.version.failover_version, cluster)
        self.held = self.held or self.foreign

    @property
    def version(self) -> VersionedTransition:
        """The last transaction that was committed."""
        return self.history[-1] if self.history else VersionedTransition()


def is_foreign(failover_version: int, cluster: Cluster | None) -> bool:
    """Whether an execution with this failover version is written to by another cluster."""
    return bool(failover_version) if cluster is None else not cluster.owns(failover_version)


def is_held(row: ExecutionRow) -> bool:
    """Whether an execution is terminated or paused."""
    return row.status == _TERMINATED or bool(row.paused)


def decode_row(kind: type[_MessageT], key: str, value: bytes) -> _MessageT:
    """The message in a row.

    Raises:
        SerializationError: it is none; names the key.
    """
    try:
        return kind.FromString(value)
    except DecodeError as error:
        raise SerializationError(f"the row {key!r} is not a {kind.DESCRIPTOR.name}") from error


async def load_execution(
    store: EngineStore, registry: Registry, key: ExecutionKey, partition: str, limit: int
) -> Execution:
    """Read the first `limit` rows of a tree, all from between two commits.

    Raises:
        ExecutionNotFoundError: there is no such run.
        SerializationError: a row cannot be decoded; names its key.
    """
    row_key, prefix = execution_keys(*key)
    found = await store.get(GetRequest(partition=partition, key=row_key))
    while True:
        if found.data is None:
            raise ExecutionNotFoundError(
                f"there is no execution {key.namespace}/{key.id} (run {key.run_id!r})"
            )
        row = decode_row(ExecutionRow, row_key, found.data)
        if row.next_ordinal == _ROOT_ALONE:
            # One row is of one moment.
            first: dict[str, bytes] = {}
            break
        first = await _read(store, partition, prefix, prefix_end(prefix), limit + 1)
        again = await store.get(GetRequest(partition=partition, key=row_key))
        if again.etag == found.etag:
            break
        found = again
    table = RowTable(prefix)
    complete = len(first) <= limit
    table.add_first(first, complete=complete)
    if not row.HasField("root"):
        raise SerializationError(f"the row {row_key!r} holds no root machine")
    source = table.source("", row.root.ordinal)
    root = Node._from_source(registry, row.root_type, row.root, source, row.next_ordinal)
    root._state.sealed = True
    execution = Execution(key, partition, root, row)
    execution.table = table
    execution.etag = found.etag
    execution.history = tuple(
        VersionedTransition(entry.failover_version, entry.max_transition_count) for entry in row.history
    )
    return execution


async def load_part(store: EngineStore, execution: Execution, part: MissingPart) -> bool:
    """Read a missing part into the execution's table; False if the execution has moved on meanwhile."""
    segments = row_segments(part.path)
    partition = execution.partition
    key = execution.prefix + segments
    if not part.subtree:
        found = await store.get(GetRequest(partition=partition, key=key))
        execution.table.add(segments, found.data)
    else:
        start, end = (key + "/", key + AFTER_SLASH) if segments else (key, prefix_end(key))
        rows = await _read(store, partition, start, end, None, skip=len(execution.prefix))
        execution.table.add_subtree(segments, rows)
    version = await store.get(GetRequest(partition=partition, key=execution.row_key))
    return version.etag == execution.etag


async def _read(
    store: EngineStore, partition: str, start: str, end: str, limit: int | None, skip: int | None = None
) -> dict[str, bytes]:
    cut = len(start) if skip is None else skip
    return {item.key[cut:]: item.value async for item in store.scan(partition, start, end, limit=limit)}
