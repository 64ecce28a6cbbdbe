"""Client code that both checkers accept as it stands: the public names, used as they are meant."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import datetime
from typing import ClassVar, assert_type
from uuid import UUID

import attrs

import hsm
from hsm.engine import (
    Call,
    Cancellable,
    ChildExecution,
    ChildObserver,
    Children,
    Engine,
    HasExecutionResult,
    Method,
    Startable,
    method,
)
from persistence.journal import EPOCH, NO_VC, Event, EventId, FeedItem, Journal, NewEvent, Output, Projection
from persistence.proto.hsm_pb2 import StateMachineKey


class OrderState(enum.Enum):
    NEW = "new"
    PAID = "paid"


@attrs.frozen
class Money:
    amount: int


@attrs.frozen
class Remind:
    type: ClassVar[hsm.TaskType] = hsm.TaskType(1, "remind")
    deadline: datetime

    @property
    def kind(self) -> hsm.TaskKind:
        return hsm.TimerKind(self.deadline)

    def validate(self, ref: hsm.Ref, node: hsm.Node) -> None:
        if node.data(Order).state is not OrderState.NEW:
            raise hsm.StaleReferenceError(f"{ref} is paid")


@attrs.define
class Order:
    state: OrderState = OrderState.NEW
    amount: int = 0

    def regenerate_tasks(self, node: hsm.Node) -> Iterable[hsm.Task]:
        assert_type(node.transition_count, int)
        return ()


class Counted:
    """A definition written by hand."""

    type = hsm.MachineType(2, "counted")

    def serialize(self, data: int, /) -> bytes:
        return str(data).encode()

    def deserialize(self, data: bytes, /) -> int:
        return int(data)

    def compare(self, a: int, b: int, /) -> int:
        return a - b


order = hsm.transitions(Order)


@order.move([OrderState.NEW], OrderState.PAID)
def pay(order: Order, event: Money) -> hsm.TransitionOutput:
    order.amount = event.amount
    return hsm.TransitionOutput((Remind(datetime.now().astimezone()),))


@order.move(OrderState, OrderState.NEW)
def reopen(order: Order, event: None) -> None:
    order.amount = 0


assert_type(pay, hsm.Transition[OrderState, Order, Money])
assert_type(pay.apply(Order(), Money(1)), hsm.TransitionOutput)
assert_type(pay.sources, frozenset[OrderState])
assert_type(pay.possible(Order()), bool)


async def charge(env: hsm.Environment, ref: hsm.Ref, task: Remind) -> None:
    def update(node: hsm.Node) -> int:
        node.apply(pay, Money(1))
        return node.data(Order).amount

    assert_type(await env.update(ref, update), int)
    async with env.access(ref, hsm.AccessType.WRITE) as node:
        assert_type(node, hsm.Node)


async def run_anything(env: hsm.Environment, ref: hsm.Ref, task: hsm.Task) -> None:
    print(env.now(), ref, task.kind)


def fire(env: hsm.Environment, node: hsm.Node, task: Remind) -> None:
    node.apply(reopen, None)


@method(Money)
def settle(node: hsm.Node, amount: int, *, tip: int = 0) -> Money:
    node.apply(pay, Money(amount + tip))
    return Money(node.data(Order).amount)


@method(None)
def forget(node: hsm.Node) -> None:
    node.apply(reopen, None)


@method(Counted())
def count(node: hsm.Node) -> int:
    return node.data(Order).amount


async def calls(engine: Engine, ref: hsm.Ref) -> None:
    assert_type(settle(3), Call[Money])
    assert_type(count, Method[[], int])
    assert_type(await engine.call(ref, settle(3, tip=1), request_id="r"), Money)
    assert_type(await engine.call(ref, count(), request_id="r"), int)
    await engine.call(ref, forget(), request_id="r")
    await engine.signal(ref, settle(3), request_id="r")
    await engine.signal(ref, lambda node: node.apply(reopen, None), request_id="r")
    assert_type(await engine.update(ref, settle(3)), Money)
    assert_type(
        await engine.call_with_start(ref.execution, Order(), settle(3), request_id="r"),
        Money,
    )


class Parent:
    """The root of an execution that has children, and is a child itself."""

    def child_closed(self, node: hsm.Node, name: str, child: ChildExecution) -> hsm.TransitionOutput | None:
        assert_type(child.result(Money), Money)
        return None

    def on_start(self, node: hsm.Node) -> None:
        children = Children(node)
        assert_type(children.start("a", Order()), hsm.Node)
        assert_type(children.data("a"), ChildExecution)
        assert_type(children.result("a", int), int)

    def request_cancel(self, node: hsm.Node, reason: str) -> None: ...

    def execution_result(self) -> Money:
        return Money(1)


observer: ChildObserver = Parent()
startable: Startable = Parent()
cancellable: Cancellable = Parent()
with_result: HasExecutionResult = Parent()

registry = hsm.Registry()
registry.register_machine(hsm.attrs_definition(hsm.MachineType(1, "order"), Order))
registry.register_machine(Counted())
registry.register_machine(hsm.proto_definition(hsm.MachineType(3, "key"), StateMachineKey))
registry.register_task(Remind, group="reminders", singleton=hsm.Singleton.REPLACE)
registry.register_executor(Remind, charge)
registry.register_executor(Remind, run_anything)
registry.register_timer_executor(Remind, fire)

root = hsm.Node.new_root(registry, 1, Order())
assert_type(root.data(Order), Order)
assert_type(root.data(Order).state, OrderState)
root.apply(pay, Money(3))
root.transition(Order, lambda order: pay.apply(order, Money(3)))
hsm.machine_transition(root, Order, lambda order: pay.apply(order, Money(3)))
assert_type(hsm.machine_data(root, Order), Order)

orders = hsm.Collection(root, 1, Order)
assert_type(orders.add("a", Order()), hsm.Node)
assert_type(orders.data("a"), Order)
orders.apply("a", pay, Money(3))
orders.transition("a", lambda order: pay.apply(order, Money(3)))
assert_type(list(orders), list[str])

for operation in root.op_log():
    if isinstance(operation, hsm.TransitionOperation):
        assert_type(operation.output.tasks, tuple[hsm.Task, ...])
    else:
        assert_type(operation, hsm.DeleteOperation)
with root.savepoint():
    root.child([hsm.Key(1, "a")]).delete_child(hsm.Key(1, "b"))

machine: hsm.StateMachine[OrderState] = Order()
task: hsm.ValidatedTask = Remind(datetime.now().astimezone())
assert_type(hsm.disposition(ValueError()), hsm.Disposition)


async def note(item: FeedItem, output: Output) -> None:
    if item.event is not None:
        output.set(str(item.position), item.event.data)


async def keep_history(journal: Journal, history: UUID) -> EventId:
    committed = await journal.commit(history, [NewEvent(b"")], EPOCH)
    assert_type(committed.events, tuple[Event, ...])
    await journal.commit(history, [event.again() for event in committed.events], NO_VC)
    async for event in journal.find(history, committed.version, reverse=True, limit=3):
        assert_type(event.id, EventId)
    assert_type(await Projection(journal, "notes", note).catch_up(), int)
    return committed.version
