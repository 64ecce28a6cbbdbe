"""A call with wrong arguments, a result taken for something else, a method that returns something else."""

from __future__ import annotations

from collections.abc import Awaitable

from shop import Money, Order, pay

import hsm
from hsm.engine import Engine, method


@method(Money)
def settle(node: hsm.Node, amount: int, *, tip: int = 0) -> Money:
    node.apply(pay, Money(amount + tip))
    return Money(node.data(Order).amount)


def text(node: hsm.Node) -> str:
    return node.machine_type.name


def no_node(order: Order) -> Money:
    return Money(order.amount)


# mypy-error: str
# pyright-error: "str" is not assignable to "Money"
method(Money)(text)
# mypy-error: Order
# pyright-error: "Node" is not assignable to "Order"
method(Money)(no_node)


def get_engine() -> Engine:
    return Engine.__new__(Engine)


engine, ref = get_engine(), hsm.Ref(hsm.ExecutionKey("shop", "1"))
receipts: list[Awaitable[Money]] = [engine.call(ref, settle(1), request_id="r")]
amounts: list[Awaitable[int]] = []
# mypy-error: incompatible type "str"; expected "int"
# pyright-error: "int"
receipts.append(engine.call(ref, settle("3"), request_id="r"))
# mypy-error: tips
# pyright-error: tips
receipts.append(engine.call(ref, settle(3, tips=1), request_id="r"))
# mypy-error: Missing named argument "request_id"
# pyright-error: "request_id"
receipts.append(engine.call(ref, settle(3)))
# mypy-error: expected "Call
# pyright-error: "Call\[
receipts.append(engine.call(ref, settle, request_id="r"))
# mypy-error: expected "Call
# pyright-error: "Call\[
receipts.append(engine.call(ref, no_node, request_id="r"))
# mypy-error: int
# pyright-error: int
amounts.append(engine.call(ref, settle(3), request_id="r"))
