"""A child that does not belong into its collection, or is taken out as something else."""

from __future__ import annotations

from shop import Order, Parcel, orders, parcels, root

import hsm

# mypy-error: "Parcel"; expected "Order"
# pyright-error: "Parcel" is not assignable to "Order"
orders.add("a", Parcel())
# mypy-error: "Order"; expected "Parcel"
# pyright-error: "Order" is not assignable to "Parcel"
parcels.add("a", Order())
# mypy-error: "type\[Order\]"; expected "Order"
# pyright-error: "type\[Order\]" is not assignable to type "Order"
orders.add("a", Order)
# mypy-error: "int"; expected "str"
# pyright-error: is not assignable to "str"
orders.add(5, Order())
# mypy-error: "Order", variable has type "Parcel"
# pyright-error: "Order" is not assignable to declared type "Parcel"
parcel: Parcel = orders.data("a")
# mypy-error: "Order".*"Parcel"
# pyright-error: "Order" is not assignable
other: Parcel = root.data(Order)
# mypy-error: "type\[Order\]"; expected "type\[Parcel\]"
# pyright-error: "type\[Order\]" is not assignable
hsm.Collection[Parcel](root, 1, Order)
