"""An order: paid and shipped, or cancelled and paid back. Run it, kill it at any moment, run it again."""

import asyncio
import enum
from datetime import datetime, timedelta
from typing import ClassVar

import attrs

import hsm
from hsm.engine import Engine
from persistence import EngineStore, connect, require


# Machines: an order, and below it the requests it makes: for payment, for shipment, for a refund.
class OrderState(enum.Enum):
    NEW = "new"
    RESERVED = "reserved"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class RequestState(enum.Enum):
    NEW = "new"
    ASKED = "asked"
    GRANTED = "granted"
    REFUSED = "refused"


@attrs.define
class Order:
    item: str
    price: int
    state: OrderState = OrderState.NEW

    @property
    def lifecycle(self) -> hsm.Lifecycle:
        ends = {OrderState.SHIPPED: hsm.Lifecycle.COMPLETED, OrderState.CANCELLED: hsm.Lifecycle.FAILED}
        return ends.get(self.state, hsm.Lifecycle.RUNNING)


@attrs.define
class Request:
    partner: str
    text: str
    state: RequestState = RequestState.NEW


# Tasks: what is to be done later, when and where.
@attrs.frozen
class Expire:
    type: ClassVar = hsm.TaskType(1, "expire")
    kind: hsm.TimerKind


@attrs.frozen
class Call:
    type: ClassVar = hsm.TaskType(2, "call")
    kind: hsm.OutboundKind
    text: str


# Transitions: from which states, to which state, and which tasks come of it.
orders, requests = hsm.transitions(Order), hsm.transitions(Request)


@orders.move([OrderState.NEW], OrderState.RESERVED)
def reserve(order: Order, until: datetime) -> hsm.TransitionOutput:
    return hsm.TransitionOutput((Expire(hsm.TimerKind(until)),))


@requests.move([RequestState.NEW], RequestState.ASKED)
def ask(request: Request, event: None) -> hsm.TransitionOutput:
    return hsm.TransitionOutput((Call(hsm.OutboundKind(request.partner), request.text),))


pay = orders.change([OrderState.RESERVED], OrderState.PAID)
ship = orders.change([OrderState.PAID], OrderState.SHIPPED)
cancel = orders.change([OrderState.RESERVED, OrderState.PAID, OrderState.CANCELLING], OrderState.CANCELLING)
close = orders.change([OrderState.RESERVED, OrderState.CANCELLING], OrderState.CANCELLED)
grant = requests.change([RequestState.ASKED], RequestState.GRANTED)
refuse = requests.change([RequestState.ASKED], RequestState.REFUSED)


# Steps: what an event means for the order and its requests together. Each is one commit.
def place(order: hsm.Node, until: datetime) -> None:
    order.apply(reserve, until)
    begin(order, "payment", "bank", f"take {order.data(Order).price}")


def begin(order: hsm.Node, name: str, partner: str, text: str) -> None:
    hsm.Collection(order, REQUEST.id, Request).add(name, Request(partner, text)).apply(ask, None)


def answer(request: hsm.Node, granted: bool) -> None:
    request.apply(grant if granted else refuse, None)
    order, reply = request.parent, (request.path[-1].id, granted)
    assert order is not None
    data = order.data(Order)
    if reply == ("payment", True) and data.state is OrderState.RESERVED:
        order.apply(pay, None)
        begin(order, "shipment", "carrier", f"ship {data.item}")
    elif reply == ("shipment", True):
        order.apply(ship, None)
    elif reply in {("payment", True), ("shipment", False)}:  # paid, and nothing to be had for it
        order.apply(cancel, None)
        begin(order, "refund", "bank", f"give back {data.price}")
    elif reply in {("payment", False), ("refund", True)}:  # not paid, or paid back
        order.apply(close, None)


# Calls to the outside, and what the engine has to know.
async def call(env: hsm.Environment, ref: hsm.Ref, task: Call) -> None:
    granted = await partner(task.kind.destination, task.text, ref.task_id)
    await env.update(ref, lambda request: answer(request, granted))


async def partner(name: str, text: str, request_id: str) -> bool:
    await asyncio.sleep(1)
    print(f"{name}: {text}")
    return text != "ship piano"


ORDER, REQUEST = hsm.MachineType(1, "order"), hsm.MachineType(2, "request")
registry = hsm.Registry()
registry.register_machine(hsm.attrs_definition(ORDER, Order))
registry.register_machine(hsm.attrs_definition(REQUEST, Request))
registry.register_task(Expire)
registry.register_task(Call)
registry.register_timer_executor(Expire, lambda env, order, task: order.apply(cancel, None))
registry.register_executor(Call, call)


async def main(url: str) -> None:
    async with require(connect(url), EngineStore) as store, Engine(registry, store) as engine:
        until = engine.now() + timedelta(minutes=15)
        for order in (Order("book", 20), Order("piano", 4000)):
            key = hsm.ExecutionKey("shop", order.item)
            await engine.start(key, order, request_id="1", on_start=lambda node: place(node, until))
        await engine.drain()
        async for info in engine.list(namespace="shop"):
            print(info.key.id, info.state)


if __name__ == "__main__":
    asyncio.run(main("sqlite:///orders.db"))
