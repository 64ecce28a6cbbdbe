"""What must hold of all rows of the database, at any moment."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from hsm.engine._children import DETACHED
from hsm.engine._rows import QueuedTask
from hsm.engine._search import index_keys
from persistence.executions import execution_key, expiry_key, parse_execution_key
from persistence.proto.execution_pb2 import (
    CurrentRun,
    DeadLetterRow,
    ExecutionRow,
    ExecutionStatus,
    ParkedTaskRow,
    TaskRow,
    TombstoneKind,
    TombstoneRow,
)
from persistence.proto.hsm_pb2 import StateMachineNode
from persistence.stores.memory import MemoryStore
from tests.simulation.runs import Finding, Rows, rows_of

__all__ = ["check_letters", "check_rows"]

_TERMINATED: Final = ExecutionStatus.EXECUTION_STATUS_TERMINATED


class Shard:
    """The rows of a shard, by what they are."""

    def __init__(self, rows: list[tuple[str, bytes]]) -> None:
        self.executions: dict[str, ExecutionRow] = {}
        self.nodes: dict[str, dict[str, StateMachineNode]] = defaultdict(dict)
        self.queued: dict[str, list[TaskRow]] = defaultdict(list)
        self.displaced: set[str] = set()
        self.dead: dict[str, DeadLetterRow] = {}
        self.parked: dict[str, ParkedTaskRow] = {}
        self.current: dict[str, str] = {}
        self.indexed: set[str] = set()
        self.expiries: set[str] = set()
        self.tombstones: list[TombstoneRow] = []
        self.belonging: dict[str, str] = {}
        for key, value in rows:
            kind, _, rest = key.partition("/")
            if kind == "e":
                self.executions[rest] = ExecutionRow.FromString(value)
            elif kind == "n":
                namespace, id_, run, *segments = rest.split("/")
                self.nodes[f"{namespace}/{id_}/{run}"]["/".join(segments)] = StateMachineNode.FromString(
                    value
                )
            elif kind in {"t", "o", "i"}:
                row = TaskRow.FromString(value)
                self.queued[row.task_id].append(row)
                if row.failures or row.not_before_nanos or QueuedTask.parse("", key, "", value).displaced:
                    self.displaced.add(row.task_id)
            elif kind == "d":
                self.dead[rest] = DeadLetterRow.FromString(value)
            elif kind == "q":
                self.parked[rest.rpartition("/")[2]] = ParkedTaskRow.FromString(value)
            elif kind == "c":
                self.current[rest] = CurrentRun.FromString(value).run_id
            elif kind == "a":
                self.indexed.add(key)
            elif kind == "x":
                self.expiries.add(key)
            elif kind == "z":
                self.tombstones.append(TombstoneRow.FromString(value))
            elif kind in {"h", "u"}:
                self.belonging[key] = "/".join(rest.split("/")[:3])
            elif kind != "p":
                raise Finding(f"{key} is no row of an execution")


def check_rows(store: MemoryStore, excused: set[str], *, resting: bool) -> None:
    """States and tasks agree; `resting`, nothing is left to be swept.

    Tasks that are `excused` may have become pointless while their rows were elsewhere.

    Raises:
        Finding: they do not.
    """
    by_shard: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for partition, key, value in rows_of(store):
        by_shard[partition].append((key, value))
    for rows in by_shard.values():
        _check_shard(Shard(rows), excused, resting=resting)


def _check_shard(shard: Shard, excused: set[str], *, resting: bool) -> None:
    swept = {_name(row) for row in shard.tombstones if row.kind == TombstoneKind.TOMBSTONE_KIND_EXECUTION}
    partly = {_name(row) for row in shard.tombstones if row.kind == TombstoneKind.TOMBSTONE_KIND_SUBTREE}
    if resting and shard.tombstones:
        raise Finding("tombstones are left")
    pending: dict[str, str] = {}
    dead: dict[str, str] = {}
    indexed: set[str] = set()
    expiries: set[str] = set()
    for run, row in shard.executions.items():
        nodes = {"": row.root, **shard.nodes.get(run, {})}
        terminated = row.status == _TERMINATED
        for segments, node in nodes.items():
            if run not in partly and segments and segments.rpartition("/")[0] not in nodes:
                raise Finding(f"{run}: the machine {segments} has no parent")
            if node.ordinal >= row.next_ordinal:
                raise Finding(f"{run}: {segments} has an ordinal that will be given again")
            for task in node.tasks:
                if task.id in pending or task.id in dead:
                    raise Finding(f"task {task.id} is pending twice")
                if not terminated or task.type in DETACHED:
                    (dead if task.dead else pending)[task.id] = run
        ordinals = [node.ordinal for node in nodes.values()]
        if run not in partly and len(set(ordinals)) != len(ordinals):
            raise Finding(f"{run}: two machines have one ordinal")
        if row.search_attributes["lines"].int_value != row.root.data.count(b"\n"):
            raise Finding(f"{run} is listed with {row.search_attributes['lines'].int_value} lines")
        key = parse_execution_key(f"e/{run}")
        indexed |= set(index_keys(*key, row.search_attributes))
        if row.expiry_nanos:
            expiries.add(expiry_key(row.expiry_nanos, *key))
        if not row.close_nanos and shard.current.get(run.rpartition("/")[0]) != run.rpartition("/")[2]:
            raise Finding(f"{run} is running, and is not the current run")
    for name, run in shard.current.items():
        if f"{name}/{run}" not in shard.executions:
            raise Finding(f"{name} names the run {run}, which is not there")
    if indexed != shard.indexed:
        raise Finding(f"the index is wrong: {sorted(indexed ^ shard.indexed)}")
    if expiries != shard.expiries:
        raise Finding(f"what expires is wrong: {sorted(expiries ^ shard.expiries)}")
    for row_key, run in shard.belonging.items():
        if run not in shard.executions and run not in swept:
            raise Finding(f"{row_key} is of an execution that is not there")
    for run in shard.nodes.keys() - shard.executions.keys() - swept:
        raise Finding(f"machines of {run}, which is not there: {list(shard.nodes[run])}")
    _check_tasks(shard, pending, dead, swept | partly, excused)


def _check_tasks(
    shard: Shard, pending: dict[str, str], dead: dict[str, str], unswept: set[str], excused: set[str]
) -> None:
    for task, run in pending.items():
        places = len(shard.queued.get(task, ())) + (task in shard.parked)
        if task in shard.dead:
            raise Finding(f"task {task} of {run} is pending, and a dead letter")
        if places == 0:
            raise Finding(f"task {task} of {run} is in no queue: nobody will run it")
        if places > 1:
            raise Finding(f"task {task} of {run} is in {places} queues")
    for task, run in dead.items():
        if task not in shard.dead:
            raise Finding(f"task {task} of {run} is a dead letter that is not there")
        if task in shard.queued or task in shard.parked:
            raise Finding(f"task {task} of {run} is a dead letter, and in a queue")
    rows = {task: rows[0] for task, rows in shard.queued.items() if task not in excused}
    # A dead letter stays for people to see, even if its machine has moved on; one that was put aside comes up again.
    for task, row in rows.items():
        key = row.execution
        run = f"{key.namespace}/{key.id}/{key.run_id}"
        execution = shard.executions.get(run)
        # Those of an execution that was terminated or deleted are dropped when they come up, and so are those
        # whose row was elsewhere, for their next try, when they became pointless.
        if (
            task not in pending
            and task not in shard.displaced
            and run not in unswept
            and execution is not None
            and execution.status != _TERMINATED
        ):
            raise Finding(f"task {task} of {run} has a row, and no machine waits for it")


def check_letters(rows: Rows) -> None:
    """No dead letter is left of an execution that was deleted, if nothing is to be swept any more.

    Raises:
        Finding: there is one.
    """
    keys = {key for _, key, _ in rows}
    if any(key.startswith("z/") for key in keys):
        return
    for _, key, value in rows:
        if key.startswith("d/"):
            row = DeadLetterRow.FromString(value).task.execution
            if execution_key(row.namespace, row.id, row.run_id) not in keys:
                raise Finding(f"the dead letter {key} is of an execution that was deleted")


def _name(row: TombstoneRow) -> str:
    key = row.execution
    return f"{key.namespace}/{key.id}/{key.run_id}"
