"""References: where a machine stands in which execution, and how to tell that one is out of date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import attrs

from hsm.errors import StaleReferenceError, StaleStateError
from hsm.machine import Key, VersionedTransition

__all__ = ["ExecutionKey", "Ref", "check_execution_version", "contains", "is_other_machine"]


class ExecutionKey(NamedTuple):
    """The name of an execution.

    Attributes:
        namespace: tenant; ids are unique within it.
        id: chosen by whoever starts the execution.
        run_id: which run of that id; "" is the current one.
    """

    namespace: str
    id: str
    run_id: str = ""


_UNKNOWN = VersionedTransition()


@attrs.frozen
class Ref:
    """A reference to a machine as it was at a moment.

    Attributes:
        execution: the tree.
        path: keys from the root to the machine; the root is ().
        transition_count: of the machine; 0 is "any".
        initial_version: when the machine was created; tells it from a later one with the same key.
        last_update_version: when the machine had last changed.
        execution_version: how far the execution was.
        task_id: the queue task that the reference comes from; "" for others.
        attempt: of that task, from 1; 0 outside a queue.

    Semantics: Temporal `hsm.Ref` (v1.24).
    """

    execution: ExecutionKey
    path: tuple[Key, ...] = ()
    transition_count: int = 0
    initial_version: VersionedTransition = _UNKNOWN
    last_update_version: VersionedTransition = _UNKNOWN
    execution_version: VersionedTransition = _UNKNOWN
    task_id: str = ""
    attempt: int = 0

    @property
    def known_version(self) -> VersionedTransition:
        """The latest point in the history of the execution that the reference knows of."""
        if self.execution_version.transition_count:
            return self.execution_version
        if self.last_update_version.transition_count:
            return self.last_update_version
        return self.initial_version

    def __str__(self) -> str:
        path = "/".join(map(str, self.path))
        return f"{self.execution.namespace}/{self.execution.id}/{path}"


def check_execution_version(version: VersionedTransition, history: Sequence[VersionedTransition]) -> None:
    """Check the execution version of a reference against the transition history of the execution.

    `history` holds the last transition of each failover version, oldest first. A reference without a
    count, or an execution without a history, is not checked. Semantics: Temporal
    `transitionhistory.StalenessCheck`.

    Raises:
        StaleStateError: the reference is ahead of this history.
        StaleReferenceError: the reference comes from a branch that is not in this history.
    """
    if not version.transition_count or not history:
        return
    last = history[-1]
    if version == last:
        return
    if version.failover_version > last.failover_version or (
        version.failover_version == last.failover_version and version.transition_count > last.transition_count
    ):
        raise StaleStateError(f"the reference knows of {version}, the execution stands at {last}")
    if not contains(history, version):
        raise StaleReferenceError(f"{version} is not in the history of the execution, which stands at {last}")


def contains(history: Sequence[VersionedTransition], version: VersionedTransition) -> bool:
    """Whether an execution with this history has been at a version."""
    previous = 0
    for entry in history:
        if entry.failover_version == version.failover_version:
            return previous < version.transition_count <= entry.transition_count
        previous = entry.transition_count
    return False


def is_other_machine(known: VersionedTransition, initial: VersionedTransition) -> bool:
    """Whether a reference that knows of one initial version cannot mean the machine with the other.

    A version without a count, as older formats have it, is told from others by its failover version alone;
    (0, 0) says nothing.
    """
    if known.transition_count and initial.transition_count:
        return known != initial
    return known.failover_version != 0 and initial.failover_version not in {0, known.failover_version}
