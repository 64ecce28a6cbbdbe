"""A small shop: machines, transitions, tasks and definitions that the tests build their worlds from."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import attrs
import pytest

from hsm import (
    ImmediateKind,
    Key,
    MachineDefinition,
    MachineType,
    Node,
    OutboundKind,
    Ref,
    Registry,
    StaleReferenceError,
    Task,
    TaskKind,
    TaskType,
    TimerKind,
    TransitionOutput,
    VersionedTransition,
    attrs_definition,
    transitions,
)
from persistence.proto.hsm_pb2 import StateMachineNode

if TYPE_CHECKING:
    from typing import TypeAlias

T = TypeVar("T")

ORDER = 1
PAYMENT = 2
PARCEL = 3
UNKNOWN = 99  # no registry of these tests knows this type


class OrderState(enum.Enum):
    NEW = "new"
    PAID = "paid"
    SHIPPED = "shipped"


class PaymentState(enum.Enum):
    OPEN = "open"
    DONE = "done"
    REFUSED = "refused"


@attrs.frozen
class Charge:
    """Asks a bank for money."""

    type: ClassVar[TaskType] = TaskType(1, "charge")
    bank: str = "bank"

    @property
    def kind(self) -> TaskKind:
        return OutboundKind(self.bank)


@attrs.frozen
class Remind:
    """A timer."""

    type: ClassVar[TaskType] = TaskType(2, "remind")
    deadline: datetime

    @property
    def kind(self) -> TaskKind:
        return TimerKind(self.deadline)


@attrs.frozen
class Announce:
    """Has no fields, and knows when it has become pointless."""

    type: ClassVar[TaskType] = TaskType(3, "announce")

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()

    def validate(self, ref: Ref, node: Node) -> None:
        if node.data(Order).state is not OrderState.PAID:
            raise StaleReferenceError(f"{ref} is not paid any more")


@attrs.define
class Order:
    state: OrderState = OrderState.NEW
    notes: list[str] = attrs.field(factory=list)

    def regenerate_tasks(self, node: Node) -> Iterable[Task]:
        return [Charge(bank=note) for note in self.notes]


@attrs.define
class Payment:
    state: PaymentState = PaymentState.OPEN
    amount: int = 0


@attrs.define
class Parcel:
    """A machine without a state of its own: anything with fields can live in a tree."""

    weight: int = 0


@attrs.frozen
class Money:
    amount: int


order = transitions(Order)
payment = transitions(Payment)


@order.move([OrderState.NEW], OrderState.PAID)
def pay(order: Order, event: Money) -> TransitionOutput:
    order.notes.append(f"paid {event.amount}")
    return TransitionOutput((Charge(),))


@order.move([OrderState.PAID], OrderState.SHIPPED)
def ship(order: Order, event: str) -> None:
    order.notes.append(f"shipped by {event}")


@payment.move([PaymentState.OPEN], PaymentState.DONE)
def settle(payment: Payment, event: Money) -> None:
    payment.amount = event.amount


class Counting(Generic[T]):
    """A definition that remembers which bytes it decoded."""

    def __init__(self, inner: MachineDefinition[T]) -> None:
        self._inner = inner
        self.decoded: list[bytes] = []

    @property
    def type(self) -> MachineType:
        return self._inner.type

    def serialize(self, data: T, /) -> bytes:
        return self._inner.serialize(data)

    def deserialize(self, data: bytes, /) -> T:
        self.decoded.append(data)
        return self._inner.deserialize(data)


class Ranked(Counting[Order]):
    """Orders can be compared: the one that has come further is newer."""

    def compare(self, a: Order, b: Order, /) -> int:
        ranks = list(OrderState)
        return ranks.index(a.state) - ranks.index(b.state)


ORDER_TYPE = MachineType(ORDER, "order")
PAYMENT_TYPE = MachineType(PAYMENT, "payment")
PARCEL_TYPE = MachineType(PARCEL, "parcel")


def shop_registry(
    *definitions: MachineDefinition[Any], without: Iterable[int] = (), debug: bool = False
) -> Registry:
    """Knows the machines and tasks of the shop; `definitions` take the place of its own."""
    registry = Registry(debug=debug)
    chosen: dict[int, MachineDefinition[Any]] = {
        ORDER: attrs_definition(ORDER_TYPE, Order),
        PAYMENT: attrs_definition(PAYMENT_TYPE, Payment),
        PARCEL: attrs_definition(PARCEL_TYPE, Parcel),
    }
    chosen |= {definition.type.id: definition for definition in definitions}
    for type_id, definition in chosen.items():
        if type_id not in without:
            registry.register_machine(definition)
    for task in (Charge, Remind, Announce):
        registry.register_task(task)
    return registry


FIRST = VersionedTransition(1, 1)


def new_order(registry: Registry | None = None, *, version: VersionedTransition = FIRST) -> Node:
    """A clean tree that is an order without children."""
    return Node.new_root(registry or shop_registry(), ORDER, Order(), version=version)


def payment_key(id_: str) -> Key:
    return Key(PAYMENT, id_)


def parcel_key(id_: str) -> Key:
    return Key(PARCEL, id_)


def order_with(*ids: str, registry: Registry | None = None) -> Node:
    """A clean order with open payments."""
    root = new_order(registry)
    for id_ in ids:
        root.add_child(payment_key(id_), Payment())
    root.clear_transaction_state()
    return root


def note(text: str) -> Callable[[Order], None]:
    """A transition of an order that writes a note and asks for nothing."""
    return lambda order: order.notes.append(text)


def charge(bank: str) -> Callable[[Any], TransitionOutput]:
    """A transition of anything that changes nothing and asks for a task."""
    return lambda _: TransitionOutput((Charge(bank),))


def amount(value: int) -> Callable[[Payment], None]:
    """A transition of a payment that sets its amount."""

    def set_amount(payment: Payment) -> None:
        payment.amount = value

    return set_amount


def persisted(root: Node) -> StateMachineNode:
    """The tree as a reader of its bytes sees it."""
    return StateMachineNode.FromString(root.to_proto().SerializeToString())


def reloaded(root: Node, registry: Registry | None = None) -> Node:
    """The tree through bytes and back, clean."""
    return Node.from_proto(registry or shop_registry(), root.machine_type.id, persisted(root))


@attrs.frozen
class Standing:
    """What can be seen of a machine from outside."""

    data: object
    transition_count: int
    initial_version: VersionedTransition
    last_update_version: VersionedTransition
    dirty: bool


Snapshot: TypeAlias = "tuple[dict[tuple[Key, ...], Standing], list[tuple[Key, ...]], object, object, bytes]"


def snapshot(root: Node) -> Snapshot:
    """All that can be seen of a tree: two that are equal cannot be told apart."""
    nodes = list(root.walk())
    return (
        {
            node.path: Standing(
                node.machine_type.name + repr(node.data(object)),
                node.transition_count,
                node.initial_version,
                node.last_update_version,
                node.dirty,
            )
            for node in nodes
        },
        [node.path for node in nodes],
        root.op_log(),
        root.outputs(),
        _without_next_ordinal(root.to_proto()).SerializeToString(deterministic=True),
    )


def _without_next_ordinal(message: StateMachineNode) -> StateMachineNode:
    # Ordinals are not given back by a rollback; nobody can see them but through the order of siblings.
    message.ClearField("next_ordinal")
    return message


@contextmanager
def nothing_changes(root: Node, error: type[BaseException]) -> Iterator[None]:
    """The block has to raise `error` and to leave the tree as it was."""
    before = snapshot(root)
    with pytest.raises(error):
        yield
    assert snapshot(root) == before


def in_an_hour(now: datetime) -> Remind:
    return Remind(now + timedelta(hours=1))
