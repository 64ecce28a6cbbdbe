"""A tree as protobuf: what is written, what is read again, and what is not even decoded."""

from __future__ import annotations

import io

import pytest
from google.protobuf.message import Message

from hsm import Collection, Key, Node, SerializationError, VersionedTransition, attrs_definition
from persistence.proto import hsm_pb2
from persistence.proto.hsm_pb2 import StateMachineNode
from tests.support.machines import (
    ORDER,
    PARCEL,
    PAYMENT,
    PAYMENT_TYPE,
    UNKNOWN,
    Counting,
    Money,
    Order,
    OrderState,
    Parcel,
    Payment,
    amount,
    new_order,
    note,
    order_with,
    parcel_key,
    pay,
    payment_key,
    persisted,
    reloaded,
    shop_registry,
    snapshot,
)

A, B, C = payment_key("a"), payment_key("b"), payment_key("c")

# Bytes of Temporal v1.24.0-m3.4, written out by field number: tag, length, content.
ORDER_BYTES = b'{"state":"new","notes":[]}'
PAYMENT_BYTES = b'{"state":"open","amount":5}'


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def number_field(number: int, value: int) -> bytes:
    return bytes([number << 3, value])


OLD_PAYMENT = number_field(1, 3) + field(2, PAYMENT_BYTES)
OLD_MAP = field(1, field(1, b"a") + field(2, OLD_PAYMENT))
OLD_TREE = number_field(1, 7) + field(2, ORDER_BYTES) + field(3, number_field(1, PAYMENT) + field(2, OLD_MAP))


def test_tree_of_the_first_version_is_read() -> None:
    root = Node.from_proto(shop_registry(), ORDER, StateMachineNode.FromString(OLD_TREE))

    assert root.transition_count == 7
    assert root.data(Order) == Order()
    child = root.child([A])
    assert child.transition_count == 3
    assert child.data(Payment).amount == 5
    assert child.initial_version == child.last_update_version == VersionedTransition(0, 0)


def test_first_version_reads_what_is_written_now() -> None:
    root = Node.from_proto(shop_registry(), ORDER, StateMachineNode.FromString(OLD_TREE))
    root.begin(VersionedTransition(1, 2))
    root.child([A]).transition(Payment, amount(9))

    top = fields_of(persisted(root).SerializeToString())
    entry = fields_of(top[3][0])
    machines = fields_of(entry[2][0])
    child = fields_of(fields_of(machines[1][0])[2][0])

    assert (top[1], top[2], entry[1]) == ([b"\7"], [ORDER_BYTES], [bytes([PAYMENT])])
    assert fields_of(machines[1][0])[1] == [b"a"]
    assert (child[1], child[2]) == ([b"\4"], [b'{"state":"open","amount":9}'])
    assert all(number in {1, 2, 3} or number >= 200 for number in [*top, *child])


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (hsm_pb2.StateMachineNode, {"transition_count": 1, "data": 2, "children": 3}),
        (hsm_pb2.StateMachineMap, {"machines_by_id": 1}),
        (hsm_pb2.StateMachineKey, {"type": 1, "id": 2}),
        (
            hsm_pb2.StateMachineRef,
            {
                "path": 1,
                "mutable_state_namespace_failover_version": 2,
                "mutable_state_transition_count": 3,
                "machine_transition_count": 4,
            },
        ),
        (hsm_pb2.StateMachineTaskInfo, {"ref": 1, "type": 2, "data": 3}),
        (hsm_pb2.VersionedTransition, {"failover_version": 1, "max_transition_count": 2}),
    ],
)
def test_shared_messages_have_the_agreed_fields_and_additions_start_at_200(
    message: type[Message], numbers: dict[str, int]
) -> None:
    fields = {name: found.number for name, found in message.DESCRIPTOR.fields_by_name.items()}

    assert {name: number for name, number in fields.items() if number < 200} == numbers


def test_tree_comes_back_as_it_was() -> None:
    root = new_order()
    root.apply(pay, Money(1))
    child = root.add_child(A, Payment(amount=1))
    child.add_child(parcel_key(""), Parcel(3)).transition(Parcel, lambda _: None)
    root.add_child(parcel_key("b"), Parcel(2))
    root.begin(VersionedTransition(2, 2))
    child.transition(Payment, amount(2))
    root.clear_transaction_state()

    again = reloaded(root)

    assert snapshot(again) == snapshot(root)
    assert not again.dirty
    assert again.child([A]).last_update_version == VersionedTransition(2, 2)
    assert again.to_proto() == root.to_proto()


def test_dirty_tree_is_written_as_it_is() -> None:
    root = reloaded(order_with("a", "b"))
    root.add_child(C, Payment(amount=3))
    root.delete_child(A)
    root.child([B]).transition(Payment, amount(2))

    again = reloaded(root)

    assert root.dirty
    assert {id_: Collection(again, PAYMENT, Payment).data(id_).amount for id_ in "bc"} == {"b": 2, "c": 3}
    assert "a" not in Collection(again, PAYMENT, Payment)


def test_subtree_is_written_alone() -> None:
    root = order_with("a")
    root.child([A]).add_child(C, Payment(amount=3))

    again = Node.from_proto(shop_registry(), PAYMENT, root.child([A]).to_proto())

    assert again.data(Payment) == Payment()
    assert again.child([C]).data(Payment).amount == 3


def test_written_message_is_not_changed_by_later_edits() -> None:
    root = order_with("a")
    message = root.to_proto()
    copy = message.SerializeToString(deterministic=True)
    again = Node.from_proto(shop_registry(), ORDER, message)

    again.child([A]).transition(Payment, amount(5))
    again.delete_child(A)
    again.add_child(B, Payment())

    assert message.SerializeToString(deterministic=True) == copy


def test_order_of_insertion_survives_any_number_of_round_trips() -> None:
    root = order_with("d", "b")
    root.add_child(parcel_key("x"), Parcel())
    again = reloaded(root)
    again.add_child(payment_key("c"), Payment())
    again = reloaded(again)
    again.add_child(payment_key("a"), Payment())

    keys = [node.key for node in reloaded(again).walk()]

    assert keys == [None, *map(payment_key, "db"), parcel_key("x"), *map(payment_key, "ca")]


def test_place_of_a_deleted_child_is_not_used_again() -> None:
    root = order_with("a", "b")
    root.delete_child(B)
    again = reloaded(root)
    again.add_child(payment_key("z"), Payment())
    again.add_child(B, Payment())

    assert list(Collection(reloaded(again), PAYMENT, Payment)) == ["a", "z", "b"]


def test_ordinals_are_used_once_in_a_tree_even_after_deletes() -> None:
    root = order_with("a", "b")
    root.child([A]).add_child(C, Payment())
    root.child([A]).delete_child(C)
    root.delete_child(B)

    again = reloaded(root)
    again.add_child(B, Payment())
    ordinals = persisted(again).children[PAYMENT].machines_by_id

    assert persisted(root).next_ordinal == 4
    assert (ordinals["a"].ordinal, ordinals["b"].ordinal) == (1, 4)


def test_tree_that_does_not_say_its_next_ordinal_is_searched_for_it() -> None:
    message = order_with("a").to_proto()
    message.ClearField("next_ordinal")
    message.children[PAYMENT].machines_by_id["a"].children[PAYMENT].machines_by_id["deep"].ordinal = 77
    root = Node.from_proto(shop_registry(), ORDER, message)

    root.add_child(B, Payment())

    assert persisted(root).children[PAYMENT].machines_by_id["b"].ordinal == 78


def test_tree_without_ordinals_sorts_by_type_and_id_and_new_children_follow() -> None:
    message = StateMachineNode(data=ORDER_BYTES)
    for key in (parcel_key("c"), B, parcel_key("a"), A):
        message.children[key.type].machines_by_id[key.id].data = b"{}"
    root = Node.from_proto(shop_registry(), ORDER, message)
    expected = [None, A, B, parcel_key("a"), parcel_key("c")]

    assert [node.key for node in root.walk()] == expected

    first = payment_key("0")
    root.add_child(first, Payment())
    assert [node.key for node in reloaded(root).walk()] == [*expected, first]


def test_rehydrating_decodes_nothing_until_it_is_asked_for() -> None:
    payments = Counting(attrs_definition(PAYMENT_TYPE, Payment))
    root = reloaded(order_with("a", "b", "c"), shop_registry(payments))
    list(root.walk())
    root.child([B])
    root.to_proto()
    assert payments.decoded == []

    for _ in range(3):
        root.child([B]).data(Payment)

    assert len(payments.decoded) == 1


def test_looking_up_one_child_makes_that_child_only() -> None:
    root = reloaded(order_with(*map(str, range(100))))

    root.child([payment_key("50")])

    assert len(root._children or {}) == 1


def test_transition_of_a_loaded_machine_decodes_nothing() -> None:
    payments = Counting(attrs_definition(PAYMENT_TYPE, Payment))
    root = order_with("a", registry=shop_registry(payments))
    payments.decoded.clear()
    child = root.child([A])

    child.transition(Payment, amount(1))
    child.transition(Payment, amount(2))

    assert payments.decoded == []


def test_deleting_decodes_nothing() -> None:
    payments = Counting(attrs_definition(PAYMENT_TYPE, Payment))
    root = reloaded(order_with("a"), shop_registry(payments))

    root.delete_child(A)

    assert payments.decoded == []


def test_undecodable_root_is_named_and_its_children_are_usable() -> None:
    message = order_with("a").to_proto()
    message.data = b"garbage"
    root = Node.from_proto(shop_registry(), ORDER, message)

    with pytest.raises(SerializationError, match="the root"):
        root.data(Order)
    with pytest.raises(SerializationError, match="the root"):
        root.transition(Order, note("x"))

    assert root.transition_count == 0
    assert root.child([A]).data(Payment) == Payment()


def test_version_of_a_loaded_tree_is_that_of_its_root_unless_told() -> None:
    root = new_order(version=VersionedTransition(4, 5))

    assert reloaded(root).version == VersionedTransition(4, 5)
    told = Node.from_proto(shop_registry(), ORDER, persisted(root), version=VersionedTransition(6, 7))
    assert told.version == VersionedTransition(6, 7)
    assert told.last_update_version == VersionedTransition(4, 5)


def test_versions_of_a_new_node_are_independent() -> None:
    root = new_order()
    child = root.add_child(A, Payment())
    root.begin(VersionedTransition(5, 5))

    child.transition(Payment, amount(1))

    assert child.initial_version == VersionedTransition(1, 1)


def test_tasks_that_a_node_remembers_are_kept() -> None:
    message = order_with("a").to_proto()
    message.children[PAYMENT].machines_by_id["a"].tasks.add(id="t1", type=1)
    root = Node.from_proto(shop_registry(), ORDER, message)
    root.child([A]).transition(Payment, amount(1))

    assert [task.id for task in root.to_proto().children[PAYMENT].machines_by_id["a"].tasks] == ["t1"]


def test_negative_and_largest_type_ids_survive() -> None:
    message = new_order().to_proto()
    for type_id in (-(2**31), 2**31 - 1):
        message.children[type_id].machines_by_id["x"].data = b"opaque"
    root = Node.from_proto(shop_registry(), ORDER, message)

    assert set(persisted(root).children) == {-(2**31), 2**31 - 1}
    root.delete_child(Key(-(2**31), "x"))
    assert set(persisted(root).children) == {2**31 - 1}


def test_unregistered_subtree_below_an_edited_child_is_kept() -> None:
    message = order_with("a").to_proto()
    message.children[PAYMENT].machines_by_id["a"].children[UNKNOWN].machines_by_id["x"].data = b"opaque"
    root = Node.from_proto(shop_registry(), ORDER, message)

    root.child([A]).transition(Payment, amount(4))

    written = persisted(root).children[PAYMENT].machines_by_id["a"]
    assert written.children[UNKNOWN].machines_by_id["x"].data == b"opaque"


def test_type_that_becomes_known_later_is_found_again() -> None:
    root = order_with("a")
    root.add_child(parcel_key("p"), Parcel(4))

    elsewhere = reloaded(root, shop_registry(without=[PARCEL]))
    elsewhere.transition(Order, note("carried"))
    back = reloaded(elsewhere)

    assert [node.key for node in elsewhere.walk()] == [None, A]
    assert back.child([parcel_key("p")]).data(Parcel) == Parcel(4)
    assert [node.key for node in back.walk()] == [None, A, parcel_key("p")]
    assert back.data(Order).state is OrderState.NEW


def fields_of(data: bytes) -> dict[int, list[bytes]]:
    """A protobuf message taken apart by field number, without its schema; numbers as single bytes."""
    fields: dict[int, list[bytes]] = {}
    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        tag = read_number(stream)
        assert tag & 7 in {0, 2}
        number = read_number(stream)
        fields.setdefault(tag >> 3, []).append(stream.read(number) if tag & 7 else bytes([number]))
    return fields


def read_number(stream: io.BytesIO) -> int:
    value = shift = 0
    while True:
        [byte] = stream.read(1)
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value
