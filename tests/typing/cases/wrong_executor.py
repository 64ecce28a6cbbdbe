"""An executor for another type of task, or of the wrong kind."""

from __future__ import annotations

from shop import Charge, Order, Remind

import hsm


async def charge(env: hsm.Environment, ref: hsm.Ref, task: Charge) -> None: ...


def remind(env: hsm.Environment, node: hsm.Node, task: Remind) -> None: ...


class Kindless:
    type = hsm.TaskType(3, "kindless")


registry = hsm.Registry()
# mypy-error: Charge
# pyright-error: "Remind" is not assignable to "Charge"
registry.register_executor(Remind, charge)
# mypy-error: Remind
# pyright-error: "Charge" is not assignable to "Remind"
registry.register_timer_executor(Charge, remind)
# mypy-error: expected "Callable\[\[Environment, Ref, Remind\], Awaitable
# pyright-error: "Ref" is not assignable to "Node"
registry.register_executor(Remind, remind)
# mypy-error: Coroutine
# pyright-error: "Node" is not assignable to "Ref"
registry.register_timer_executor(Charge, charge)
# mypy-error: "TaskT" of "register_task" of "Registry" cannot be "Order"
# pyright-error: "Order" is incompatible with protocol "Task"
registry.register_task(Order)
# mypy-error: Kindless
# pyright-error: "kind" is not present
registry.register_task(Kindless)
# mypy-error: "MachineType"; expected "MachineDefinition
# pyright-error: "MachineType" is incompatible with protocol
registry.register_machine(hsm.MachineType(1, "x"))
# mypy-error: Order
# pyright-error: "Order" is incompatible with protocol "Task"
hsm.attrs_task_serializer(Order)
# mypy-error: Order
# pyright-error: "Order" is incompatible with protocol "Task"
hsm.TransitionOutput((Order(),))
# mypy-error: "type\[Remind\]"
# pyright-error: "type\[Remind\]"
hsm.TransitionOutput(Remind)
