"""A move between states of another machine, or a function on one."""

from __future__ import annotations

from shop import Money, Order, OrderState, Parcel, ParcelState, order

import hsm


# mypy-error: "ParcelState"; expected "OrderState"
# pyright-error: "Literal\[ParcelState.PACKED\]" is not assignable to "OrderState"
@order.move([ParcelState.PACKED], OrderState.PAID)
def from_foreign_state(order: Order, event: Money) -> None: ...


# mypy-error: "ParcelState"; expected "OrderState"
# pyright-error: ParcelState
@order.move([OrderState.NEW], ParcelState.SENT)
def to_foreign_state(order: Order, event: Money) -> None: ...


# mypy-error: "ParcelState"; expected "OrderState"
# pyright-error: ParcelState
@order.move([ParcelState.PACKED], ParcelState.SENT)
def between_foreign_states(order: Order, event: Money) -> None: ...


# mypy-error: "str"; expected "OrderState"
# pyright-error: is not assignable to "OrderState"
@order.move([OrderState.NEW], "paid")
def to_text(order: Order, event: Money) -> None: ...


# mypy-error: Iterable
# pyright-error: Iterable
@order.move(OrderState.NEW, OrderState.PAID)
def from_one_state(order: Order, event: Money) -> None: ...


# mypy-error: Callable\[\[Parcel, Money\]
# pyright-error: "Order" is not assignable to "Parcel"
@order.move([OrderState.NEW], OrderState.PAID)
def foreign_machine(parcel: Parcel, event: Money) -> None: ...


# mypy-error: "Callable\[\[Order\], None\]"; expected
# pyright-error: "\(order: Order\) -> None"
@order.move([OrderState.NEW], OrderState.PAID)
def without_event(order: Order) -> None: ...


# mypy-error: "Callable\[\[Order, Money\], str\]"; expected
# pyright-error: "str"
@order.move([OrderState.NEW], OrderState.PAID)
def other_result(order: Order, event: Money) -> str:
    return ""


# mypy-error: Money
# pyright-error: "Money"
hsm.transitions(Money)


# mypy-error: "ParcelState"; expected "OrderState"
# pyright-error: ParcelState
order.change([OrderState.NEW], ParcelState.SENT)

# mypy-error: "str"; expected "None"
# pyright-error: "None"
order.change([OrderState.NEW], OrderState.PAID).apply(Order(), "now")
