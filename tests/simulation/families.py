"""What must hold of parents and their child executions when everything has come to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hsm.engine import CHILD_EXECUTION, ChildExecution, ChildState, ClosePolicy
from hsm.machine import Key, Lifecycle
from persistence.proto.execution_pb2 import ExecutionStatus
from tests.simulation.runs import Finding, Path, Run

__all__ = ["check_families", "is_in_vain"]

_STATUS: Final = {
    ExecutionStatus.EXECUTION_STATUS_COMPLETED: Lifecycle.COMPLETED,
    ExecutionStatus.EXECUTION_STATUS_FAILED: Lifecycle.FAILED,
    ExecutionStatus.EXECUTION_STATUS_TERMINATED: Lifecycle.TERMINATED,
}


def check_families(runs: Mapping[str, Run], gone: Mapping[str, Run], forced: set[str]) -> None:
    """Each child was started once, its parent was told of its end once, and it has ended as agreed.

    Args:
        runs: those that there are.
        gone: those that were deleted, as they were then.
        forced: those that were deleted by force: nobody hears of their end, nor ends their children.

    Raises:
        Finding: something is not as it should be.
    """
    for run in runs.values():
        _check_hired(run)
        for path, child in run.children.items():
            _check_child(run, path, child, runs, gone, forced)
    _check_parents(runs, gone, forced)


def _check_hired(run: Run) -> None:
    """There is a machine for each child that was asked for."""
    asked = {
        (*path, Key(CHILD_EXECUTION.id, line.split(" ")[1]))
        for path, lines in run.lines.items()
        for line in lines
        if line.startswith("hire ")
    }
    if asked != run.children.keys():
        raise Finding(f"{run} has the children {list(run.children)}, and has asked for {asked}")


def _check_child(
    parent: Run,
    path: Path,
    child: ChildExecution,
    runs: Mapping[str, Run],
    gone: Mapping[str, Run],
    forced: set[str],
) -> None:
    """What a parent knows of one child is so."""
    id_ = path[-1].id
    heard = [line for line in parent.lines[path[:-1]] if line.startswith(f"heard {id_} ")]
    here = f"{parent} {id_}"
    if len(heard) > 1:
        raise Finding(f"{here}: the parent was told of one end {len(heard)} times")
    if child.state is not ChildState.CLOSED:
        if heard:
            raise Finding(f"{here}: the parent was told of an end, and does not know of it")
        if child.state is ChildState.SCHEDULED:
            if parent.terminated and child.close_policy is ClosePolicy.ABANDON:
                # Whoever has started it nevertheless would have said so.
                return
            raise Finding(f"{here}: the child was never started")
        run = runs.get(child.execution.run_id)
        if run is None and child.execution.run_id not in forced:
            raise Finding(
                f"{here}: the parent has not been told of the end of {child.execution}, which is gone"
            )
        if run is not None and run.closed:
            raise Finding(f"{here}: the parent has not been told of the end of {run}")
        return
    if not heard and not parent.closed:
        raise Finding(f"{here}: the machine that has started the child was not told of its end")
    if child.status is None:
        if not child.error:
            raise Finding(f"{here}: nobody knows why the child could not be started")
        if parent.id in child.execution.id:
            raise Finding(f"{here}: a name that is made for one child is never taken")
        return
    run = runs.get(child.execution.run_id) or gone.get(child.execution.run_id)
    if run is None:
        raise Finding(f"{here}: the child {child.execution} is lost")
    if _STATUS.get(run.row.status) is not child.status:
        raise Finding(f"{here}: the parent takes {run} for {child.status}")
    if (child.raw_result is None) is (child.status is Lifecycle.COMPLETED):
        raise Finding(f"{here}: the result of {run} is not as it should be")


def is_in_vain(run: Run, everything: Mapping[str, Run]) -> bool:
    """Whether a child was started by somebody who came too late: its parent knows another run, or none."""
    parent = everything[run.row.parent.execution.run_id]
    child = _known(run, parent)
    return child is None or (child.state is not ChildState.SCHEDULED and child.execution.run_id != run.id)


def _known(run: Run, parent: Run) -> ChildExecution | None:
    """What a parent knows of its child; None if it has let go of it."""
    path, made = _machine(run)
    node = parent.nodes.get(path)
    if node is None or node.initial_version.max_transition_count != made:
        return None
    return parent.children[path]


def _machine(run: Run) -> tuple[Path, int]:
    """Which machine stands for a child: its path, and when it was made."""
    link = run.row.parent
    path = tuple(Key(key.type, key.id) for key in link.path)
    return path, link.initial_version.max_transition_count


def _check_parents(runs: Mapping[str, Run], gone: Mapping[str, Run], forced: set[str]) -> None:
    """Each child has a parent that knows it, has been let go, or has ended with it; no other is left of it."""
    everything = {**gone, **runs}
    first: dict[tuple[str, tuple[Path, int]], Run] = {}
    for run in everything.values():
        if not run.row.HasField("parent"):
            continue
        link = run.row.parent.execution.run_id
        other = first.setdefault((link, _machine(run)), run)
        if link not in everything:
            raise Finding(f"{run} has a parent that was never there")
        parent = everything[link]
        if other is not run and not (
            {other.id, run.id} & forced or is_in_vain(other, everything) or is_in_vain(run, everything)
        ):
            raise Finding(f"{run} and {other} are one child")
        if run.closed or run.id in gone:
            continue
        child = _known(run, parent)
        if child is None or parent.id in forced:
            # It was let go.
            continue
        if is_in_vain(run, everything):
            raise Finding(f"{run} runs, and is not the child that {parent} knows")
        if child.state is ChildState.CLOSED:
            raise Finding(f"{run} runs, and {parent} believes that it has ended")
        if child.state is ChildState.SCHEDULED:
            raise Finding(f"{run} runs, and {parent} does not know of it")
        if parent.closed and child.close_policy is not ClosePolicy.ABANDON:
            raise Finding(f"{run} has outlived {parent}")
