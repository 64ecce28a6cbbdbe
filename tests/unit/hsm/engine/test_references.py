"""The staleness of references, row by row of the table that decides it."""

from __future__ import annotations

import attrs
import pytest

from hsm import (
    HSMError,
    Key,
    Node,
    Ref,
    StaleReferenceError,
    StaleStateError,
    StateMachineNotFoundError,
    VersionedTransition,
)
from hsm.engine._execution import Execution
from hsm.engine._rows import QueuedTask
from hsm.engine._transaction import begin, check_pending, locate
from hsm.testing import TestEngine
from persistence.proto.execution_pb2 import ExecutionRow
from tests.support.databases import Database
from tests.support.jobs import JOB, Call, Job, Lasting, Step, World, job, log, note, started, step

HISTORY = (VersionedTransition(1, 3), VersionedTransition(3, 6))
KEY = job()._replace(run_id="run")
OK = None
V = VersionedTransition
NOTHING = V()
NOWHERE = (step("nowhere"),)
A = (step("a"),)
CREATED, CHANGED, MADE = V(1, 2), V(3, 5), V(3, 6)


def execution(
    history: tuple[VersionedTransition, ...] = HISTORY, created: VersionedTransition = CREATED
) -> Execution:
    """An execution with one child, "a", that was created at (1, 2) and changed at (3, 5)."""
    root = Node.new_root(World().registry, JOB, Job(), version=V(1, 1))
    root.begin(created)
    child = root.add_child(step("a"), Step())
    root.begin(V(3, 5))
    note("changed")(child)
    root.clear_transaction_state()
    made = Execution(KEY, "exec/0", root, ExecutionRow())
    made.history = history
    begin(made, reading=True)
    return made


def ref(
    path: tuple[Key, ...] = A,
    *,
    made_at: VersionedTransition = MADE,
    created: VersionedTransition = CREATED,
    changed: VersionedTransition = CHANGED,
    task_id: str = "",
) -> Ref:
    return Ref(KEY, path, 1, created, changed, made_at, task_id)


def guess(path: tuple[Key, ...] = A, *, task_id: str = "") -> Ref:
    """A reference that knows of no version."""
    return ref(path, made_at=NOTHING, created=NOTHING, changed=NOTHING, task_id=task_id)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        pytest.param(ref(), OK, id="holds"),
        # 3: the version of the execution
        pytest.param(ref(made_at=V(3, 7)), StaleStateError, id="later than the store"),
        pytest.param(ref(made_at=V(4, 4)), StaleStateError, id="failover the store has not heard of"),
        pytest.param(ref(made_at=V(3, 4)), OK, id="earlier, of the last failover version"),
        pytest.param(ref(made_at=V(1, 3)), OK, id="earlier, of an older failover version"),
        pytest.param(ref(made_at=V(3, 3)), StaleReferenceError, id="before the failover began"),
        pytest.param(ref(made_at=V(2, 4)), StaleReferenceError, id="failover version without history"),
        pytest.param(ref(made_at=V(1, 4)), StaleReferenceError, id="lost in a failover"),
        # 3, where only the machine's versions are known
        pytest.param(ref(made_at=NOTHING), OK, id="machine's versions of this history"),
        pytest.param(ref(made_at=NOTHING, changed=V(3, 8)), StaleStateError, id="machine changed later"),
        pytest.param(
            ref(NOWHERE, made_at=NOTHING, changed=NOTHING, created=V(3, 9)),
            StaleStateError,
            id="machine that the store has not heard of",
        ),
        pytest.param(
            ref(NOWHERE, made_at=NOTHING, changed=NOTHING, created=V(1, 5)),
            StaleReferenceError,
            id="machine that was lost in a failover",
        ),
        # 4: the machine is missing
        pytest.param(ref(NOWHERE), StaleReferenceError, id="deleted"),
        pytest.param(ref(NOWHERE, task_id="task"), StaleReferenceError, id="deleted under a task"),
        # 6: another machine has its key
        pytest.param(ref(created=V(1, 1)), StaleReferenceError, id="deleted and added again"),
        pytest.param(ref(created=V(3, 4)), StaleReferenceError, id="added again after a failover"),
        # 8: the machine's last version is never compared, its count is
        pytest.param(ref(changed=V(1, 2)), OK, id="last version differs"),
        pytest.param(attrs.evolve(ref(), transition_count=2), StaleReferenceError, id="count differs"),
        pytest.param(attrs.evolve(ref(), transition_count=0), OK, id="any count"),
        # 2 and legacy: versions that are not known
        pytest.param(guess(), OK, id="knows of no version"),
        pytest.param(guess(NOWHERE), StateMachineNotFoundError, id="guess"),
        pytest.param(
            guess(NOWHERE, task_id="task"), StaleReferenceError, id="no version, deleted under a task"
        ),
        pytest.param(ref(created=V(1, 0)), OK, id="only the failover version of its creation"),
        pytest.param(ref(created=V(3, 0)), StaleReferenceError, id="another failover version"),
    ],
)
def test_reference_is_judged_by_what_it_knows(reference: Ref, answer: type[HSMError] | None) -> None:
    if answer is None:
        assert locate(execution(), reference, None).path == reference.path
    else:
        with pytest.raises(answer):
            locate(execution(), reference, None)


def test_without_a_history_versions_of_the_execution_are_not_checked() -> None:
    assert locate(execution(history=()), ref(made_at=V(9, 9)), None).key == step("a")
    with pytest.raises(StaleReferenceError):
        locate(execution(history=()), ref(created=V(2, 2)), None)


@pytest.mark.parametrize(("created", "holds"), [(V(1, 0), True), (V(0, 0), True), (V(2, 0), False)])
def test_machine_without_a_count_is_told_by_its_failover_version(
    created: VersionedTransition, holds: bool
) -> None:
    made = execution(created=created)
    if holds:
        assert locate(made, ref(), None).key == step("a")
    else:
        with pytest.raises(StaleReferenceError):
            locate(made, ref(), None)


def test_task_that_is_not_pending_any_more_is_stale() -> None:
    made = execution()
    with pytest.raises(StaleReferenceError, match="task task is not pending any more"):
        check_pending(made.root, QueuedTask("exec/0", "i/tests//task", "etag", ("tests", "", None), None))


async def test_state_that_stays_behind_is_told_after_one_reload(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        made = await started(engine)
        ahead = attrs.evolve(made, execution_version=VersionedTransition(0, 5))
        with pytest.raises(StaleStateError):
            await engine.update(ahead, note("too early"))
        for text in "abcd":
            await engine.update(made, note(text))
        await engine.update(ahead, note("now"))
        assert await engine.read(made, log) == ["a", "b", "c", "d", "now"]


async def test_state_in_memory_that_stays_behind_is_read_again(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        made = await started(one)
        await one.update(made, note("one"))
        await other.update(made, note("other"))
        latest = await other.read(made, lambda root: root.ref(made.execution))
        await one.update(latest, note("after"))
        assert await one.read(made, log) == ["one", "other", "after"]


async def test_validators_decide_last(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        made = await started(engine, "job", Call("counted"), Lasting("validated"))
        await engine.update(made, note("moved on"))
    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
    assert world.names() == ["validated"]
