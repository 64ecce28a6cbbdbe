"""What must hold in the end: of what clients know, of every task, and of the executions that were deleted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from hsm import Ref
from hsm.engine import Engine
from hsm.engine._children import DETACHED
from hsm.errors import ExecutionNotFoundError
from persistence.stores.memory import MemoryStore
from tests.simulation.families import check_families, is_in_vain
from tests.simulation.records import Outcome, Record, Records
from tests.simulation.runs import Archive, Finding, Path, Run, rows_of, runs_of
from tests.simulation.world import World

__all__ = ["check_models"]

_NEVER: Final = 2**62
_BY_FORCE: Final = "delete by force"


async def check_models(
    engine: Engine, store: MemoryStore, records: Records, world: World, archive: Archive, retention: int
) -> None:
    """Everything that was acknowledged is there once, in an order that can be; every task was carried out.

    Executions are deleted by clients, or `retention` nanoseconds after their end; 0 is never.

    Raises:
        Finding: something is not as it should be.
    """
    runs = runs_of(rows_of(store))
    everything = {**archive.runs, **runs}
    by_mark = {record.mark: record for record in records.all}
    forced = {
        record.run
        for record in records.all
        if record.kind == _BY_FORCE and record.outcome is not Outcome.REFUSED
    }
    places = _marks(everything, by_mark, forced)
    _check_records(records, runs, everything, places)
    _check_deletions(records, archive, forced, retention)
    for run in everything.values():
        _check_order(run, by_mark)
        _check_structure(run)
    for run in runs.values():
        if retention and run.closed:
            raise Finding(f"{run} has closed long ago, and is kept")
        if not run.terminated:
            for path, lines in run.lines.items():
                _check_errands(run, path, lines, world, places)
    for mark, answer in records.answers:
        if mark in places and not places[mark].lines[()][answer].startswith(f"did {mark} "):
            raise Finding(f"{mark} was told that it is line {answer} of {places[mark]}, and is not")
    _check_reads(records, everything.values(), by_mark)
    check_families(runs, archive.runs, forced)
    await _check_engine(engine, runs)


def _marks(runs: Mapping[str, Run], by_mark: Mapping[str, Record], forced: set[str]) -> dict[str, Run]:
    """Where each mark is; every one is somewhere once.

    A child that was deleted by force before its parent knew of it is started again; and one may be started
    another time by somebody who was stopped meanwhile.
    """
    places: dict[str, Run] = {}
    for run in sorted(runs.values(), key=lambda run: run.id):
        for line in run.lines[()]:
            verb, *words = line.split(" ")
            if verb != "did":
                continue
            mark = words[0]
            before = places.setdefault(mark, run)
            again = mark.endswith("b") and (
                before.id in forced or is_in_vain(before, runs) or is_in_vain(run, runs)
            )
            if before is not run and _asked(mark, by_mark) < 2 and not again:
                raise Finding(f"{mark} was done twice: in {run} and {before}")
    for run in runs.values():
        counts = Counter(line.split(" ")[1] for line in run.lines[()] if line.startswith("did "))
        for mark, count in counts.items():
            if count > 1:
                raise Finding(f"{mark} was done twice in {run}")
    return places


def _asked(mark: str, by_mark: Mapping[str, Record]) -> int:
    record = by_mark.get(mark) or by_mark.get(mark.removesuffix("s"))
    return 1 if record is None else record.asked


def _check_records(
    records: Records, runs: Mapping[str, Run], everything: Mapping[str, Run], places: Mapping[str, Run]
) -> None:
    terminations = {
        record.run: record
        for record in records.all
        if record.kind == "terminate" and record.outcome is Outcome.DONE
    }
    for record in records.all:
        if record.kind == "update":
            _check_update(record, places, terminations)
        elif record.kind == "start" and record.outcome is Outcome.REFUSED and f"{record.mark}s" in places:
            raise Finding(f"start {record.mark} was refused, and has taken place")
        elif record.kind == "start" and record.outcome is Outcome.DONE:
            if record.run not in everything:
                raise Finding(f"start {record.mark} was acknowledged, and its run {record.run} is lost")
        elif record.kind == "terminate" and record.outcome is Outcome.DONE:
            run = everything.get(record.run)
            if run is not None and not run.terminated:
                raise Finding(f"{run} was terminated, and is not")
        elif record.kind.startswith("delete") and record.outcome is Outcome.DONE and record.run in runs:
            raise Finding(f"{record.run} was deleted, and is there")


def _check_update(record: Record, places: Mapping[str, Run], terminations: Mapping[str, Record]) -> None:
    run = places.get(record.mark)
    if record.outcome is Outcome.REFUSED and run is not None:
        raise Finding(f"update {record.mark} was refused, and is in {run}")
    if record.outcome is Outcome.DONE and run is None:
        raise Finding(f"update {record.mark} was acknowledged, and is lost")
    if run is not None and (end := terminations.get(run.id)) is not None and record.began > end.ended:
        raise Finding(f"update {record.mark} has changed {run} after that was terminated")


def _check_deletions(records: Records, archive: Archive, forced: set[str], retention: int) -> None:
    """What is gone was deleted by a client, or has closed and was kept for as long as it should be."""
    deleted = {
        record.run
        for record in records.all
        if record.kind.startswith("delete") and record.outcome is not Outcome.REFUSED
    }
    for run in archive.runs.values():
        if run.id in forced:
            continue
        row = run.row
        if not run.closed:
            raise Finding(f"{run} was deleted without force, and was running")
        if any(task.type in DETACHED for task in row.root.tasks):
            raise Finding(f"{run} was deleted before its parent or its children had heard of its end")
        if run.id not in deleted and (not retention or run.deleted_at < row.close_nanos + retention):
            raise Finding(f"{run} was deleted, and nobody has asked for that")


def _check_order(run: Run, by_mark: Mapping[str, Record]) -> None:
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


def _check_errands(run: Run, path: Path, lines: list[str], world: World, places: Mapping[str, Run]) -> None:
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


def _check_effects(run: Run, name: str, mode: str, places: Mapping[str, Run]) -> None:
    if mode == "other" and name not in places:
        raise Finding(f"{run}: {name} was to tell another execution, which does not know")
    if mode == "start" and f"{name}e" not in places:
        raise Finding(f"{run}: {name} was to start another execution, which is not there")


def _check_reads(records: Records, runs: Iterable[Run], by_mark: Mapping[str, Record]) -> None:
    """What was read is what somebody has written by then, and holds whatever had been acknowledged before."""
    by_start: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_start[run.lines[()][0]].append(run)
    for began, lines in records.reads:
        # A request that was made again may have begun two of them.
        seen = [run for run in by_start[lines[0]] if tuple(run.lines[()][: len(lines)]) == lines]
        if not seen:
            raise Finding(f"a read has seen what was never there: {lines[0]}")
        unseen = [_unseen(run, began, len(lines), by_mark) for run in seen]
        if all(unseen):
            raise Finding(f"{seen[0]}: a read has not seen {unseen[0]}, which had been acknowledged")


def _unseen(run: Run, began: int, lines: int, by_mark: Mapping[str, Record]) -> str:
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


async def _check_engine(engine: Engine, runs: Mapping[str, Run]) -> None:
    """The engine tells what the rows say."""
    listed = {info.key.run_id for info in [info async for info in engine.list()]}
    if listed != runs.keys():
        raise Finding(f"listed are {sorted(listed ^ runs.keys())} too many or too few")
    for run in runs.values():
        ref = Ref(run.key)
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
            tree = await engine.tree_at(run.key, last)
            told = {node.path: node.transition_count for node in tree.walk()}
            if told != found:
                raise Finding(f"{run}: its history tells of other machines than there are")
