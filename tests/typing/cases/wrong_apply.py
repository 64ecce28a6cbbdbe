"""A transition meets an event or a machine that is not its own."""

from __future__ import annotations

from shop import Money, Order, Parcel, orders, parcels, pay, root, send

import hsm

# mypy-error: "str"; expected "Money"
# pyright-error: "Literal\['three'\]" is not assignable to "Money"
pay.apply(Order(), "three")
# mypy-error: "None"; expected "Money"
# pyright-error: "None" is not assignable to "Money"
pay.apply(Order(), None)
# mypy-error: "Parcel"; expected "Order"
# pyright-error: "Parcel" is not assignable to "Order"
pay.apply(Parcel(), Money(3))
# mypy-error: Missing positional argument "event"
# pyright-error: missing for parameter "event"
pay.apply(Order())
# mypy-error: "Parcel"; expected "Order"
# pyright-error: "Parcel" is not assignable to "Order"
pay.possible(Parcel())

# mypy-error: type parameter "EventT" of "apply"
# pyright-error: "Literal\['three'\]" is not assignable to "Money"
root.apply(pay, "three")
# mypy-error: type parameter "EventT" of "apply"
# pyright-error: "Money"
root.apply(send, Money(3))

# mypy-error: type parameter "EventT" of "apply"
# pyright-error: "Literal\['three'\]" is not assignable to "Money"
orders.apply("a", pay, "three")
# mypy-error: "Transition\[ParcelState, Parcel, str\]"; expected "Transition\[Any, Order, str\]"
# pyright-error: "Order"
orders.apply("a", send, "mail")
# mypy-error: "Transition\[OrderState, Order, Money\]"; expected "Transition\[Any, Parcel, Money\]"
# pyright-error: "Parcel"
parcels.apply("a", pay, Money(3))

# mypy-error: "str"; expected "Money"
# pyright-error: "Literal\['three'\]" is not assignable to "Money"
root.transition(Order, lambda order: pay.apply(order, "three"))
# mypy-error: "Parcel"; expected "Order"
# pyright-error: "Parcel" is not assignable to "Order"
root.transition(Parcel, lambda parcel: pay.apply(parcel, Money(3)))
# mypy-error: "Order"; expected "Parcel"
# pyright-error: "Order" is not assignable to "Parcel"
orders.transition("a", lambda order: send.apply(order, "mail"))
# mypy-error: "Order"; expected "Parcel"
# pyright-error: "Order" is not assignable to "Parcel"
hsm.machine_transition(root, Order, lambda order: send.apply(order, "mail"))


def weigh(parcel: Parcel) -> None:
    parcel.weight = 3


# mypy-error: Callable\[\[Parcel\], None\]
# pyright-error: "Order" is not assignable to "Parcel"
root.transition(Order, weigh)
# mypy-error: Callable\[\[Parcel\], None\]
# pyright-error: "Order" is not assignable to "Parcel"
orders.transition("a", weigh)
# mypy-error: list
# pyright-error: "list\[.*\]" is not assignable
root.transition(Order, lambda _: [])
