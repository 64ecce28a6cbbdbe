"""What must hold: of all rows of the database at any moment, and of what clients know when everything has ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from hsm import ExecutionKey, Ref
from hsm.engine import Engine
from hsm.engine._rows import QueuedTask
from hsm.engine._search import index_keys
from hsm.engine._table import row_path
from hsm.errors import ExecutionNotFoundError
from hsm.machine import Key
from persistence.executions import parse_execution_key
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
from tests.simulation.records import Outcome, Record, Records
from tests.simulation.world import NAMESPACE, World

__all__ = ["Finding", "check_models", "check_rows", "rows_of"]

_NEVER: Final = 2**62
_TERMINATED: Final = ExecutionStatus.EXECUTION_STATUS_TERMINATED
Rows = list[tuple[str, str, bytes]]
Path = tuple[Key, ...]


class Finding(Exception):  # noqa: N818 - what the audit is for
    """Something that must not be."""


def rows_of(store: MemoryStore) -> Rows:
    """All rows of all shards: partition, key, value."""
    return [
        (partition, key, table.rows[key].value)
        for partition, table in sorted(store._data.tables.items())
        if partition.startswith("exec/")
        for key in table.keys
    ]


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
            elif kind == "z":
                self.tombstones.append(TombstoneRow.FromString(value))
            elif kind in {"h", "u"}:
                self.belonging[key] = "/".join(rest.split("/")[:3])
            elif kind not in {"p", "x"}:
                raise Finding(f"{key} is no row of an execution")


def check_rows(store: MemoryStore, replayed: set[str], *, resting: bool) -> None:
    """States and tasks agree; `resting`, nothing is left to be swept.

    Tasks that were replayed may have become pointless while they were dead letters.

    Raises:
        Finding: they do not.
    """
    by_shard: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for partition, key, value in rows_of(store):
        by_shard[partition].append((key, value))
    for rows in by_shard.values():
        _check_shard(Shard(rows), replayed, resting=resting)


def _check_shard(shard: Shard, replayed: set[str], *, resting: bool) -> None:
    swept = {_name(row) for row in shard.tombstones if row.kind == TombstoneKind.TOMBSTONE_KIND_EXECUTION}
    partly = {_name(row) for row in shard.tombstones if row.kind == TombstoneKind.TOMBSTONE_KIND_SUBTREE}
    if resting and shard.tombstones:
        raise Finding("tombstones are left")
    pending: dict[str, str] = {}
    dead: dict[str, str] = {}
    indexed: set[str] = set()
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
                if not terminated:
                    (dead if task.dead else pending)[task.id] = run
        ordinals = [node.ordinal for node in nodes.values()]
        if run not in partly and len(set(ordinals)) != len(ordinals):
            raise Finding(f"{run}: two machines have one ordinal")
        if row.search_attributes["lines"].int_value != row.root.data.count(b"\n"):
            raise Finding(f"{run} is listed with {row.search_attributes['lines'].int_value} lines")
        indexed |= set(index_keys(*parse_execution_key(f"e/{run}"), row.search_attributes))
        if not row.close_nanos and shard.current.get(run.rpartition("/")[0]) != run.rpartition("/")[2]:
            raise Finding(f"{run} is running, and is not the current run")
    for name, run in shard.current.items():
        if f"{name}/{run}" not in shard.executions:
            raise Finding(f"{name} names the run {run}, which is not there")
    if indexed != shard.indexed:
        raise Finding(f"the index is wrong: {sorted(indexed ^ shard.indexed)}")
    for key, run in shard.belonging.items():
        if run not in shard.executions and run not in swept:
            raise Finding(f"{key} is of an execution that is not there")
    for run in shard.nodes.keys() - shard.executions.keys() - swept:
        raise Finding(f"machines of {run}, which is not there: {list(shard.nodes[run])}")
    _check_tasks(shard, pending, dead, swept | partly, replayed)


def _check_tasks(
    shard: Shard, pending: dict[str, str], dead: dict[str, str], unswept: set[str], replayed: set[str]
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
    rows = {task: rows[0] for task, rows in shard.queued.items() if task not in replayed}
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


def _name(row: TombstoneRow) -> str:
    key = row.execution
    return f"{key.namespace}/{key.id}/{key.run_id}"


# What clients know


class Run:
    """One run, as it is in the end."""

    def __init__(self, id_: str, run: str, row: ExecutionRow, nodes: dict[Path, StateMachineNode]) -> None:
        self.id = id_
        self.run = run
        self.row = row
        self.nodes = nodes
        self.lines = {path: node.data.decode().split("\n")[1:] for path, node in nodes.items()}

    def __str__(self) -> str:
        return f"{self.id}/{self.run}"

    @property
    def terminated(self) -> bool:
        return self.row.status == _TERMINATED


async def check_models(engine: Engine, store: MemoryStore, records: Records, world: World) -> None:
    """Everything that was acknowledged is there once, in an order that can be; every task was carried out.

    Raises:
        Finding: something is not as it should be.
    """
    runs = _runs(rows_of(store))
    by_mark = {record.mark: record for record in records.all}
    places = _marks(runs, by_mark)
    _check_records(records, runs, places)
    for run in runs.values():
        _check_order(run, by_mark)
        _check_structure(run)
        if not run.terminated:
            for path, lines in run.lines.items():
                _check_errands(run, path, lines, world, places)
    for mark, answer in records.answers:
        if mark in places and not places[mark].lines[()][answer].startswith(f"did {mark} "):
            raise Finding(f"{mark} was told that it is line {answer} of {places[mark]}, and is not")
    _check_reads(records, runs, by_mark)
    await _check_engine(engine, runs)


def _runs(rows: Rows) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    nodes: dict[str, dict[Path, StateMachineNode]] = defaultdict(dict)
    for _, key, value in rows:
        if key.startswith("n/"):
            _, _, _, run, *segments = key.split("/")
            nodes[run][row_path("/".join(segments))] = StateMachineNode.FromString(value)
    for _, key, value in rows:
        if key.startswith("e/"):
            _, id_, run = parse_execution_key(key)
            row = ExecutionRow.FromString(value)
            runs[run] = Run(id_, run, row, {(): row.root, **nodes[run]})
    return runs


def _marks(runs: dict[str, Run], by_mark: dict[str, Record]) -> dict[str, Run]:
    """Where each mark is; every one is somewhere once."""
    places: dict[str, Run] = {}
    for run in runs.values():
        for line in run.lines[()]:
            verb, *words = line.split(" ")
            if verb != "did":
                continue
            mark = words[0]
            before = places.setdefault(mark, run)
            if before is not run and _asked(mark, by_mark) < 2:
                raise Finding(f"{mark} was done twice: in {run} and {before}")
    for run in runs.values():
        counts = Counter(line.split(" ")[1] for line in run.lines[()] if line.startswith("did "))
        for mark, count in counts.items():
            if count > 1:
                raise Finding(f"{mark} was done twice in {run}")
    return places


def _asked(mark: str, by_mark: dict[str, Record]) -> int:
    record = by_mark.get(mark) or by_mark.get(mark.removesuffix("s"))
    return 1 if record is None else record.asked


def _check_records(records: Records, runs: dict[str, Run], places: dict[str, Run]) -> None:
    deletions = [record for record in records.all if record.kind == "delete"]
    deleted = {record.run for record in deletions if record.outcome is not Outcome.REFUSED}
    terminations = {
        record.run: record
        for record in records.all
        if record.kind == "terminate" and record.outcome is Outcome.DONE
    }
    for record in deletions:
        if record.outcome is Outcome.DONE and record.run in runs:
            raise Finding(f"{record.run} was deleted, and is there")
    for record in records.all:
        if record.kind == "update":
            _check_update(record, places, deleted, terminations)
        elif record.kind == "start" and record.outcome is Outcome.REFUSED and f"{record.mark}s" in places:
            raise Finding(f"start {record.mark} was refused, and has taken place")
        elif record.kind == "start" and record.outcome is Outcome.DONE:
            if record.run not in runs and record.run not in deleted:
                raise Finding(f"start {record.mark} was acknowledged, and its run {record.run} is lost")
        elif record.kind == "terminate" and record.outcome is Outcome.DONE:
            run = runs.get(record.run)
            if run is not None and not run.terminated:
                raise Finding(f"{run} was terminated, and is not")


def _check_update(
    record: Record, places: dict[str, Run], deleted: set[str], terminations: dict[str, Record]
) -> None:
    run = places.get(record.mark)
    if record.outcome is Outcome.REFUSED and run is not None:
        raise Finding(f"update {record.mark} was refused, and is in {run}")
    if record.outcome is Outcome.DONE and run is None and not deleted:
        raise Finding(f"update {record.mark} was acknowledged, and is lost")
    if run is not None and (end := terminations.get(run.run)) is not None and record.began > end.ended:
        raise Finding(f"update {record.mark} has changed {run} after that was terminated")


def _check_order(run: Run, by_mark: dict[str, Record]) -> None:
    """Whatever had ended before another request began comes before it; each was made on the state before it."""
    later: list[Record] = []
    for position, line in enumerate(run.lines[()]):
        verb, *words = line.split(" ")
        if verb != "did":
            continue
        if int(words[1]) != position:
            raise Finding(
                f"{run}: {words[0]} was made on a state of {words[1]} lines, and is line {position}"
            )
        record = by_mark.get(words[0])
        if record is not None:
            later.append(record)
    earliest_end = 2**63
    for record in reversed(later):
        if record.began > earliest_end:
            raise Finding(f"{run}: {record.mark} comes before what had ended when it began")
        # What was asked for again may have been done once more, by another run.
        if record.outcome is Outcome.DONE and record.asked == 1:
            earliest_end = min(earliest_end, record.ended)


def _check_structure(run: Run) -> None:
    """The machines are those that the root says were added, and none that were deleted."""
    there: dict[str, list[str]] = {}
    for line in run.lines[()]:
        verb, *words = line.split(" ")
        if verb != "did":
            continue
        what = words[2] if len(words) > 2 else "-"
        name = what.lstrip("+!~")
        if what.startswith("+"):
            there[name] = [words[0]]
        elif what.startswith("!"):
            there = {
                other: marks
                for other, marks in there.items()
                if other != name and not other.startswith(f"{name}/")
            }
        elif what != "-" and not what.startswith("~"):
            there[name].append(words[0])
    found = {"/".join(key.id for key in path): lines for path, lines in run.lines.items() if path}
    if found.keys() != there.keys():
        raise Finding(f"{run} has the machines {sorted(found)}, and should have {sorted(there)}")
    for name, marks in there.items():
        written = [line.split(" ")[1] for line in found[name] if line.startswith("did ")]
        if written != marks:
            raise Finding(f"{run}: {name} has {written}, and should have {marks}")


def _check_errands(run: Run, path: Path, lines: list[str], world: World, places: dict[str, Run]) -> None:
    """Every task that was asked for was carried out, or there is a reason why it was not."""
    asked: dict[str, tuple[str, int, str, int]] = {}
    ran: dict[str, tuple[int, int]] = {}
    end = _NEVER
    for position, line in enumerate(lines):
        verb, *words = line.split(" ")
        if verb == "ask":
            asked[words[0]] = (words[1], int(words[2]), words[3], position)
        elif verb == "end":
            end = min(end, position)
        elif verb == "ran":
            name = words[0]
            if name in ran:
                raise Finding(f"{run} {path}: task {name} was carried out twice")
            if name not in asked:
                raise Finding(f"{run} {path}: task {name} was carried out, and nobody has asked for it")
            if position > end and asked[name][0] != "fragile":
                raise Finding(f"{run} {path}: task {name} was carried out by a machine that had ended")
            ran[name] = (position, int(words[1]))
    for name, (kind, count, mode, position) in asked.items():
        done = ran.get(name)
        if kind == "fragile" and done is not None and done[1] != count + 1:
            raise Finding(f"{run} {path}: {name} was carried out, though its machine had moved on")
        if done is not None:
            if mode == "silent":
                raise Finding(f"{run} {path}: {name} writes nothing, and has written")
            _check_effects(run, name, mode, places)
            continue
        reason = _reason(kind, count, name, position, end, asked, ran, run.nodes[path].transition_count)
        if not reason and not (mode == "silent" and world.attempts[name]):
            raise Finding(f"{run} {path}: {kind} {name} ({mode}) was never carried out")


def _reason(
    kind: str,
    count: int,
    name: str,
    position: int,
    end: int,
    asked: dict[str, tuple[str, int, str, int]],
    ran: dict[str, tuple[int, int]],
    transitions: int,
) -> bool:
    """Whether a task may have been dropped."""
    if end != _NEVER:
        return True
    if kind == "fragile":
        return transitions > count
    others = {other: details for other, details in asked.items() if details[0] == kind and other != name}
    if kind == "newest":
        return any(details[3] > position for details in others.values())
    if kind == "first":
        return any(
            details[3] < position and (other not in ran or ran[other][0] > position)
            for other, details in others.items()
        )
    return False


def _check_effects(run: Run, name: str, mode: str, places: dict[str, Run]) -> None:
    if mode == "other" and name not in places:
        raise Finding(f"{run}: {name} was to tell another execution, which does not know")
    if mode == "start" and f"{name}e" not in places:
        raise Finding(f"{run}: {name} was to start another execution, which is not there")


def _check_reads(records: Records, runs: dict[str, Run], by_mark: dict[str, Record]) -> None:
    """What was read is what somebody has written by then, and holds whatever had been acknowledged before."""
    by_start: dict[str, list[Run]] = defaultdict(list)
    for run in runs.values():
        by_start[run.lines[()][0]].append(run)
    for began, lines in records.reads:
        # A request that was made again may have begun two of them.
        candidates = by_start[lines[0]]
        if not candidates:
            continue
        seen = [run for run in candidates if tuple(run.lines[()][: len(lines)]) == lines]
        if not seen and _asked(lines[0].split(" ")[1], by_mark) > 1:
            # The one that was read has been deleted.
            continue
        if not seen:
            raise Finding(f"{candidates[0]}: a read has seen what was never there")
        unseen = [_unseen(run, began, len(lines), by_mark) for run in seen]
        if all(unseen):
            raise Finding(f"{seen[0]}: a read has not seen {unseen[0]}, which had been acknowledged")


def _unseen(run: Run, began: int, lines: int, by_mark: dict[str, Record]) -> str:
    """The mark of a request that had ended before a read of so many lines began, and is not among them."""
    for line in run.lines[()][lines:]:
        verb, *words = line.split(" ")
        record = by_mark.get(words[0]) if verb == "did" else None
        # What was asked for again may have been done once more, by another run.
        if record is None or record.outcome is not Outcome.DONE or record.asked > 1:
            continue
        if record.ended < began:
            return record.mark
    return ""


async def _check_engine(engine: Engine, runs: dict[str, Run]) -> None:
    """The engine tells what the rows say."""
    listed = {info.key.run_id for info in [info async for info in engine.list()]}
    if listed != runs.keys():
        raise Finding(f"listed are {sorted(listed ^ runs.keys())} too many or too few")
    for run in runs.values():
        ref = Ref(_key(run))
        try:
            found = await engine.read(
                ref, lambda root: {node.path: node.transition_count for node in root.walk()}
            )
        except ExecutionNotFoundError as error:
            raise Finding(f"{run} cannot be read: {error}") from error
        if found != {path: node.transition_count for path, node in run.nodes.items()}:
            raise Finding(f"{run}: the engine reads other machines than there are")
        if run.row.keeps_history:
            last = run.row.history[-1].max_transition_count
            tree = await engine.tree_at(_key(run), last)
            told = {node.path: node.transition_count for node in tree.walk()}
            if told != found:
                raise Finding(f"{run}: its history tells of other machines than there are")


def _key(run: Run) -> ExecutionKey:
    return ExecutionKey(NAMESPACE, run.id, run.run)
