"""References: what they say, and when an execution's version makes one stale."""

from __future__ import annotations

import pytest

from hsm import ExecutionKey, Ref, StaleReferenceError, StaleStateError, VersionedTransition
from hsm.ref import check_execution_version
from tests.support.machines import Payment, amount, new_order, order_with, parcel_key, payment_key

HISTORY = [VersionedTransition(1, 3), VersionedTransition(3, 6)]
A = payment_key("a")


def test_ref_of_a_node_says_where_it_stands_now() -> None:
    root = order_with("a")
    child = root.child([A])
    root.begin(VersionedTransition(2, 8))
    child.transition(Payment, amount(1))

    ref = child.ref(ExecutionKey("shop", "order-1", "run-1"))

    assert ref == Ref(
        execution=ExecutionKey("shop", "order-1", "run-1"),
        path=(A,),
        transition_count=1,
        initial_version=VersionedTransition(1, 1),
        last_update_version=VersionedTransition(2, 8),
        execution_version=VersionedTransition(2, 8),
    )
    assert (ref.task_id, ref.attempt) == ("", 0)
    child.transition(Payment, amount(2))
    assert ref.transition_count == 1


def test_ref_of_the_root_has_no_path() -> None:
    ref = new_order().ref(ExecutionKey("shop", "order-1"))

    assert (ref.path, ref.transition_count, ref.execution.run_id) == ((), 0, "")


def test_ref_prints_as_a_path() -> None:
    ref = Ref(ExecutionKey("shop", "order-1"), (A, parcel_key("p")))

    assert str(ref) == "shop/order-1/2:a/3:p"


@pytest.mark.parametrize("version", [(3, 4), (3, 5), (3, 6), (1, 1), (1, 2), (1, 3)])
def test_version_of_this_history_is_accepted(version: tuple[int, int]) -> None:
    check_execution_version(VersionedTransition(*version), HISTORY)


@pytest.mark.parametrize("version", [(3, 7), (4, 4), (4, 1)])
def test_version_ahead_of_this_history_means_that_the_state_is_stale(version: tuple[int, int]) -> None:
    with pytest.raises(StaleStateError):
        check_execution_version(VersionedTransition(*version), HISTORY)


@pytest.mark.parametrize("version", [(3, 3), (2, 4), (1, 4), (0, 1)])
def test_version_of_another_branch_is_stale(version: tuple[int, int]) -> None:
    with pytest.raises(StaleReferenceError):
        check_execution_version(VersionedTransition(*version), HISTORY)


def test_version_that_is_not_known_is_not_checked() -> None:
    check_execution_version(VersionedTransition(9, 0), HISTORY)
    check_execution_version(VersionedTransition(9, 9), [])
