"""Names that are nearly right."""

from __future__ import annotations

from shop import Order, OrderState, order, orders, pay, root

import hsm

# mypy-error: has no attribute "Colection"
# pyright-error: "Colection" is unknown
from hsm import Colection  # noqa: F401 - misspelt on purpose

# mypy-error: has no attribute "trasition"
# pyright-error: "trasition"
root.trasition(Order, lambda _: None)
# mypy-error: has no attribute "dta"
# pyright-error: "dta"
root.dta(Order)
# mypy-error: "Order" has no attribute "pay"
# pyright-error: "pay"
root.transition(Order, lambda order: order.pay())
# mypy-error: has no attribute "stat"
# pyright-error: "stat"
root.data(Order).stat = OrderState.PAID
# mypy-error: has no attribute "ad"
# pyright-error: "ad"
orders.ad("a", Order())
# mypy-error: has no attribute "mov"
# pyright-error: "mov"
order.mov([OrderState.NEW], OrderState.PAID)
# mypy-error: has no attribute "NWE"
# pyright-error: "NWE"
order.move([OrderState.NWE], OrderState.PAID)
# mypy-error: has no attribute "aply"
# pyright-error: "aply"
pay.aply(Order(), None)
# mypy-error: "taks"
# pyright-error: "taks"
hsm.TransitionOutput(taks=())
# mypy-error: "dedline"
# pyright-error: "dedline"
hsm.TimerKind(dedline=None)
# mypy-error: has no attribute "Nod"
# pyright-error: "Nod"
hsm.Nod(root)
# mypy-error: "debg"
# pyright-error: "debg"
hsm.Registry(debg=True)
# mypy-error: read-only
# pyright-error: "version"
root.version = hsm.VersionedTransition(1, 1)
