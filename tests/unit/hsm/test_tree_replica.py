"""Copies of a tree: what one tells the others, and how all of them come to be the same."""

from __future__ import annotations

from itertools import permutations

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from hsm import (
    AccessClosedError,
    Key,
    Node,
    NotRegisteredError,
    ReentrantTransitionError,
    ResendError,
    StateMachineNotFoundError,
    VersionedTransition,
)
from hsm.tree import MergeResult, Replica
from persistence.proto.replication_pb2 import Delta
from tests.support.machines import (
    Order,
    Parcel,
    Payment,
    amount,
    new_order,
    note,
    parcel_key,
    payment_key,
    persisted,
    shop_registry,
)

V = VersionedTransition
A, B, C = (payment_key(id_) for id_ in "abc")


def replica(tombstones: int = 64) -> Replica:
    """The first copy of an order, at version (1, 1)."""
    return Replica(new_order(), tombstones=tombstones)


def copy(of: Replica) -> Replica:
    return Replica.restore(shop_registry(), sent(of.changes_since()))


def sent(delta: Delta) -> Delta:
    """The delta, as it arrives."""
    return Delta.FromString(delta.SerializeToString())


def add(of: Replica, *path: Key) -> None:
    with of.transaction() as root:
        child = path[-1]
        root.child(path[:-1]).add_child(child, Payment() if child.type == A.type else Parcel())


def write(of: Replica, text: str, *path: Key) -> None:
    with of.transaction() as root:
        if path:
            root.child(path).transition(Payment, amount(len(text)))
        else:
            root.transition(Order, note(text))


def delete(of: Replica, *path: Key) -> None:
    with of.transaction() as root:
        root.child(path[:-1]).delete_child(path[-1])


def tell(source: Replica, target: Replica) -> MergeResult:
    """What a link between two copies does."""
    try:
        return target.apply(sent(source.changes_since(target.version)))
    except ResendError as error:
        return target.apply(sent(source.changes_since(error.since)))


def seen(of: Replica) -> object:
    """All there is to see of a copy."""
    nodes = [
        (
            node.path,
            node.data(object),
            node.transition_count,
            node.initial_version,
            node.last_update_version,
        )
        for node in of.root.walk()
    ]
    return nodes, of.history, persisted(of.root).SerializeToString(deterministic=True)


def changed(delta: Delta) -> list[tuple[Key, ...]]:
    return [tuple(Key(key.type, key.id) for key in node.path) for node in delta.nodes]


def test_snapshot_is_the_whole_tree() -> None:
    mine = replica()
    add(mine, A)
    add(mine, A, parcel_key("p"))
    write(mine, "hello")

    other = copy(mine)

    assert seen(other) == seen(mine)
    assert other.version == V(1, 4)
    add(other, B)  # goes on as the first would
    add(mine, B)
    assert seen(other) == seen(mine)


def test_delta_holds_what_has_changed_parents_first() -> None:
    mine = replica()
    add(mine, B)
    add(mine, A)
    before = mine.version
    add(mine, B, parcel_key("p"))
    write(mine, "x", B)
    add(mine, C)

    assert changed(mine.changes_since(before)) == [(B,), (B, parcel_key("p")), (C,)]
    assert changed(mine.changes_since()) == [(B,), (B, parcel_key("p")), (A,), (C,)]
    assert changed(mine.changes_since(mine.version)) == []


def test_delta_brings_a_copy_up_to_date() -> None:
    mine = replica()
    add(mine, A)
    other = copy(mine)
    add(mine, A, parcel_key("p"))
    write(mine, "long", A)
    write(mine, "root")
    add(mine, B)

    assert tell(mine, other) is MergeResult.APPLIED
    assert seen(other) == seen(mine)
    assert tell(mine, other) is MergeResult.DUPLICATE


def test_machine_that_was_not_changed_keeps_its_children() -> None:
    mine = replica()
    add(mine, A)
    add(mine, A, parcel_key("p"))
    other = copy(mine)
    write(mine, "x", A)
    tell(mine, other)
    assert other.root.child([A, parcel_key("p")]).initial_version == V(1, 3)


def test_deletions_are_told() -> None:
    mine = replica()
    add(mine, A)
    add(mine, A, parcel_key("p"))
    add(mine, B)
    other = copy(mine)
    delete(mine, A)
    delta = mine.changes_since(other.version)

    assert [len(batch.state_machine_tombstones) for batch in delta.row.tombstones] == [1]
    assert other.apply(delta) is MergeResult.APPLIED
    assert [node.key for node in other.root.walk()] == [None, B]
    assert seen(other) == seen(mine)


def test_deletion_of_what_a_copy_never_had_is_fine() -> None:
    mine = replica()
    other = copy(mine)
    add(mine, A)
    add(mine, A, parcel_key("p"))
    delete(mine, A, parcel_key("p"))
    delete(mine, A)

    tell(mine, other)

    assert seen(other) == seen(mine)


def test_machine_that_was_deleted_and_added_again_is_a_new_one() -> None:
    mine = replica()
    add(mine, A)
    add(mine, A, parcel_key("p"))
    write(mine, "old", A)
    other = copy(mine)
    with mine.transaction() as root:
        root.delete_child(A)
        root.add_child(A, Payment())

    assert tell(mine, other) is MergeResult.APPLIED

    again = other.root.child([A])
    assert (again.initial_version, again.transition_count) == (V(1, 5), 0)
    assert [node.path for node in again.walk()] == [(A,)]
    assert seen(other) == seen(mine)


def test_who_lacks_more_deletions_than_are_remembered_gets_everything() -> None:
    mine = replica(tombstones=2)
    for id_ in "abcd":
        add(mine, payment_key(id_))
    other = copy(mine)
    for id_ in "abc":
        delete(mine, payment_key(id_))

    delta = mine.changes_since(other.version)
    assert not delta.HasField("since")
    assert mine.changes_since(V(1, 6)).HasField("since")
    assert other.apply(delta) is MergeResult.APPLIED
    assert seen(other) == seen(mine)


def test_copy_remembers_deletions_for_the_next_copy() -> None:
    mine = replica()
    add(mine, A)
    add(mine, B)
    second, third = copy(mine), copy(mine)
    delete(mine, A)
    tell(mine, second)
    delete(mine, B)
    tell(mine, second)

    delta = second.changes_since(third.version)

    assert delta.HasField("since")
    third.apply(delta)
    assert seen(third) == seen(mine)


def test_gap_is_told_with_the_version_that_is_needed() -> None:
    mine = replica()
    other = copy(mine)
    write(mine, "1")
    middle = mine.version
    write(mine, "2")
    late = mine.changes_since(middle)

    with pytest.raises(ResendError) as told:
        other.apply(late)

    assert told.value.since == V(1, 1)
    assert tell(mine, other) is MergeResult.APPLIED
    assert other.apply(late) is MergeResult.DUPLICATE


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_deltas_of_one_source_may_come_in_any_order(order: tuple[int, ...]) -> None:
    mine = replica()
    other = copy(mine)
    deltas: list[Delta] = []
    for path in ((A,), (A, parcel_key("p")), (B,)):
        before = mine.version
        add(mine, *path)
        deltas.append(mine.changes_since(before))
    for index in order * 2:
        try:
            other.apply(deltas[index])
        except ResendError as error:
            other.apply(mine.changes_since(error.since))
    assert seen(other) == seen(mine)


def test_children_may_come_before_their_parents() -> None:
    mine = replica()
    other = copy(mine)
    add(mine, A)
    add(mine, A, parcel_key("p"))
    delta = mine.changes_since(other.version)
    nodes = [*delta.nodes]
    del delta.nodes[:]
    delta.nodes.extend(reversed(nodes))

    other.apply(delta)

    assert seen(other) == seen(mine)


def test_child_without_its_parent_is_refused_and_changes_nothing() -> None:
    mine = replica()
    other = copy(mine)
    add(mine, A)
    add(mine, A, parcel_key("p"))
    delta = mine.changes_since(other.version)
    del delta.nodes[0]
    before = seen(other)

    with pytest.raises(ResendError) as told:
        other.apply(delta)

    assert told.value.since == V()
    assert seen(other) == before


# Failover


def test_copy_that_takes_over_goes_on_under_its_own_version() -> None:
    mine = replica()
    other = copy(mine)
    other.take_over(2)
    write(other, "other")

    assert other.history == (V(1, 1), V(2, 2))
    assert other.root.last_update_version == V(2, 2)
    assert tell(other, mine) is MergeResult.APPLIED
    assert seen(mine) == seen(other)


def test_history_that_has_parted_loses_against_a_higher_failover_version() -> None:
    mine = replica()
    add(mine, A)
    other = copy(mine)
    for text in "12345":
        write(mine, text)
    add(mine, B)
    delete(mine, A)
    other.take_over(2)
    write(other, "the one that counts")

    assert tell(mine, other) is MergeResult.OUTDONE
    with pytest.raises(ResendError) as told:
        mine.apply(other.changes_since(V(1, 2)))
    assert told.value.since == V()
    assert tell(other, mine) is MergeResult.APPLIED

    assert mine.root.data(Order).notes == ["the one that counts"]
    assert [node.key for node in mine.root.walk()] == [None, A]
    assert seen(mine) == seen(other)


def test_history_that_has_parted_under_one_failover_version_loses_against_a_longer_one() -> None:
    """Which only happens if two write under one version, or one was put back to an old state."""
    mine = replica()
    other, fork = copy(mine), copy(mine)
    for of in (mine, other, fork):
        of.take_over(2)
    write(mine, "2")
    other.take_over(3)
    for of, count in ((other, 1), (fork, 3)):
        for _ in range(count):
            write(of, "x")
    fork.take_over(3)
    write(fork, "y")

    assert (other.version, fork.version) == (V(3, 2), V(3, 5))
    assert tell(other, fork) is MergeResult.OUTDONE
    assert tell(fork, other) is MergeResult.APPLIED
    assert seen(other) == seen(fork)


def test_failover_version_must_grow() -> None:
    mine = replica()
    with pytest.raises(ValueError, match="failover version 1 is not after"):
        mine.take_over(1)


# Transactions


def delete_both(root: Node) -> None:
    root.delete_child(A)
    root.delete_child(B)


def test_transaction_that_fails_is_no_version() -> None:
    mine = replica()
    add(mine, A)
    before = seen(mine)
    with pytest.raises(StateMachineNotFoundError), mine.transaction() as root:
        delete_both(root)
    assert seen(mine) == before
    assert list(mine.changes_since(V(1, 1)).row.tombstones) == []


def test_transaction_that_changes_nothing_is_no_version() -> None:
    mine = replica()
    with mine.transaction():
        pass
    assert mine.version == V(1, 1)


def test_changes_outside_of_a_transaction_are_refused() -> None:
    mine = replica()
    delta = mine.changes_since()
    mine.root.transition(Order, note("behind its back"))
    with pytest.raises(ReentrantTransitionError):
        mine.changes_since()
    with pytest.raises(ReentrantTransitionError):
        mine.apply(delta)
    with pytest.raises(ReentrantTransitionError), mine.transaction():
        pass


def test_nodes_from_before_a_delta_are_of_no_use() -> None:
    mine = replica()
    other = copy(mine)
    old = other.root
    write(mine, "new")
    tell(mine, other)
    with pytest.raises(AccessClosedError):
        old.data(Order)


def test_machines_of_unknown_types_are_carried_along() -> None:
    mine = replica()
    add(mine, A)
    add(mine, A, parcel_key("p"))
    other = Replica.restore(shop_registry(without=[A.type]), sent(mine.changes_since()))
    write(mine, "x", A)
    add(mine, parcel_key("q"))
    tell(mine, other)

    with pytest.raises(NotRegisteredError):
        other.root.child([A])
    assert seen(copy(other)) == seen(mine)


def test_only_a_snapshot_is_restored() -> None:
    mine = replica()
    before = mine.version
    write(mine, "x")
    with pytest.raises(ResendError):
        Replica.restore(shop_registry(), mine.changes_since(before))


def test_delta_without_history_is_no_delta() -> None:
    with pytest.raises(ValueError, match="no history"):
        replica().apply(Delta())


# Everything at once


@attrs.frozen
class Change:
    """One of the two that may write changes something. Numbers pick from what there is."""

    writer: int
    kind: str
    target: int
    id: str


@attrs.frozen
class Failover:
    to: int


@attrs.frozen
class Send:
    """One copy tells another, who gets it now, later or never; `since` may be long ago."""

    source: int
    target: int
    since: int


@attrs.frozen
class Deliver:
    """Something that was sent arrives, now or again."""

    message: int


numbers = st.integers(0, 40)
copies = st.integers(0, 2)
stories = st.lists(
    st.builds(
        Change, copies, st.sampled_from(["add", "write", "delete", "again"]), numbers, st.sampled_from("abc")
    )
    | st.builds(Failover, copies)
    | st.builds(Send, copies, copies, numbers)
    | st.builds(Deliver, numbers),
    min_size=3,
    max_size=40,
)


class Story:
    """Three copies; each believes itself to be the one that is written to since it has taken over last."""

    def __init__(self, tombstones: int) -> None:
        first = replica(tombstones)
        self.copies = [first, copy(first), copy(first)]
        self.active = [True, False, False]
        self.epoch = 1
        self.sent: list[tuple[int, Delta]] = []

    def tell(self, event: Change | Failover | Send | Deliver) -> None:
        if isinstance(event, Change):
            if self.active[event.writer]:
                self.change(self.copies[event.writer], event)
        elif isinstance(event, Failover):
            self.epoch += 1
            self.copies[event.to].take_over(self.epoch)
            self.active[event.to] = True
            write(self.copies[event.to], f"epoch {self.epoch}")
        elif isinstance(event, Send):
            source = self.copies[event.source]
            versions = [V(), *source.history, self.copies[event.target].version]
            delta = sent(source.changes_since(versions[event.since % len(versions)]))
            self.sent.append((event.target, delta))
        elif self.sent:
            self.deliver(*self.sent[event.message % len(self.sent)])

    def deliver(self, target: int, delta: Delta) -> None:
        mine = self.copies[target]
        before = seen(mine)
        version = mine.version
        try:
            result = mine.apply(delta)
        except ResendError:
            assert seen(mine) == before
            return
        if result is not MergeResult.APPLIED:
            assert seen(mine) == before
            return
        assert mine.version > version
        # Whoever hears of a later failover stops writing.
        self.active[target] = False
        assert mine.apply(delta) is MergeResult.DUPLICATE

    def change(self, of: Replica, event: Change) -> None:
        paths = [node.path for node in of.root.walk()]
        path = paths[event.target % len(paths)]
        key = payment_key(event.id)
        with of.transaction() as root:
            node = root.child(path)
            if event.kind == "add" and len(path) < 3 and (*path, key) not in paths:
                node.add_child(key, Payment())
            elif event.kind == "write" or not path:
                touch(node)
            elif event.kind == "delete":
                root.child(path[:-1]).delete_child(path[-1])
            elif event.kind == "again":
                parent = root.child(path[:-1])
                parent.delete_child(path[-1])
                touch(parent.add_child(path[-1], Payment()))

    def settle(self) -> None:
        """Until nobody has news for anybody."""
        for _ in range(3):
            for source in self.copies:
                for target in self.copies:
                    if source is not target:
                        tell(source, target)


def touch(node: Node) -> None:
    if node.path:
        node.transition(Payment, lambda payment: setattr(payment, "amount", payment.amount + 1))
    else:
        node.transition(Order, note("x"))


@settings(max_examples=300, deadline=None)
@given(stories, st.sampled_from([0, 1, 3, 64]))
def test_all_copies_come_to_be_the_same(
    happenings: list[Change | Failover | Send | Deliver], tombstones: int
) -> None:
    story = Story(tombstones)
    for event in happenings:
        story.tell(event)
    newest = max(of.version for of in story.copies)
    story.settle()
    assert [seen(of) for of in story.copies] == [seen(story.copies[0])] * 3
    assert story.copies[0].version == newest
