"""A result taken for something else, a wrong close policy, an observer that does not listen."""

from __future__ import annotations

from shop import Money, Order, root

import hsm
from hsm.engine import ChildExecution, ChildObserver, Children, ClosePolicy


class Deaf:
    def child_closed(self, node: hsm.Node, child: ChildExecution) -> None: ...


children = Children(root)
children.start("a", Order(), close_policy=ClosePolicy.ABANDON)
money: Money = children.result("a", Money)
# mypy-error: variable has type "int"
# pyright-error: "Money" is not assignable to "int"
amount: int = children.data("a").result(Money)
# mypy-error: "ClosePolicy"
# pyright-error: "ClosePolicy"
children.start("a", Order(), close_policy="abandon")
# mypy-error: "ExecutionKey"
# pyright-error: "ExecutionKey"
children.start("a", Order(), execution="other")
# mypy-error: "ChildExecution"
# pyright-error: "ChildExecution"
children.add("a", Order())
# mypy-error: "ChildObserver"
# pyright-error: "ChildObserver"
observer: ChildObserver = Deaf()
