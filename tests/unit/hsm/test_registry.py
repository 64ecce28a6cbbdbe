"""The registry: what it takes, and what it refuses at start-up rather than at midnight."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import ClassVar

import attrs
import pytest

from hsm import (
    DuplicateRegistrationError,
    Environment,
    ImmediateKind,
    MachineType,
    Node,
    NotRegisteredError,
    Ref,
    Registry,
    Singleton,
    TaskKind,
    TaskType,
    attrs_definition,
    attrs_task_serializer,
)
from tests.support.machines import ORDER, ORDER_TYPE, Announce, Charge, Order, Parcel, Remind, shop_registry


async def run(env: Environment, ref: Ref, task: object) -> None: ...


def fire(env: Environment, node: Node, task: object) -> None: ...


def task_class(type_: object = TaskType(50, "made"), **names: object) -> type[Charge]:
    """A class of tasks without fields, with these names on top."""
    body = {"type": type_, "kind": property(lambda _: ImmediateKind()), **names}
    return attrs.frozen(type("Made", (), body))


def test_registered_machines_are_found_by_id_and_listed_in_order() -> None:
    registry = Registry()
    first = attrs_definition(MachineType(2, "two"), Order)
    second = attrs_definition(MachineType(1, "one"), Parcel)

    registry.register_machine(first)
    registry.register_machine(second)

    assert registry.machine(2) is first
    assert registry.machine(3) is None
    assert list(registry.machines()) == [first, second]
    with pytest.raises(NotRegisteredError, match="machine type 3"):
        registry.required_machine(3)


@pytest.mark.parametrize("clash", [MachineType(ORDER, "other"), MachineType(77, "order")])
def test_machine_type_is_registered_once_by_id_and_by_name(clash: MachineType) -> None:
    registry = shop_registry()

    with pytest.raises(DuplicateRegistrationError, match="clashes with"):
        registry.register_machine(attrs_definition(clash, Order))

    found = registry.machine(ORDER)
    assert found is not None
    assert found.type == ORDER_TYPE
    assert registry.machine(77) is None


@pytest.mark.parametrize("type_id", [2**31, -(2**31) - 1])
def test_id_has_to_be_an_int32(type_id: int) -> None:
    with pytest.raises(ValueError, match=f"{type_id} is not an int32"):
        Registry().register_machine(attrs_definition(MachineType(type_id, "big"), Order))
    with pytest.raises(ValueError, match=f"{type_id} is not an int32"):
        Registry().register_task(task_class(TaskType(type_id, "big")))


@pytest.mark.parametrize("type_id", [2**31 - 1, -(2**31), 0])
def test_every_int32_is_an_id(type_id: int) -> None:
    registry = Registry()

    registry.register_machine(attrs_definition(MachineType(type_id, "edge"), Order))
    registry.register_task(task_class(TaskType(type_id, "edge")))

    assert registry.machine(type_id) is not None
    assert registry.task(type_id) is not None


def test_task_is_registered_with_what_was_said_of_it() -> None:
    registry = Registry()

    registry.register_task(Charge, group="banks", singleton=Singleton.REPLACE, timeout=timedelta(seconds=3))
    registry.register_task(Remind)

    charge, remind = registry.task(1), registry.task(2)
    assert charge is not None
    assert remind is not None
    assert (charge.task, charge.group, charge.singleton) == (Charge, "banks", Singleton.REPLACE)
    assert charge.timeout == timedelta(seconds=3)
    assert (remind.group, remind.singleton, remind.timeout) == ("remind", None, None)
    assert registry.task(9) is None


@pytest.mark.parametrize("clash", [TaskType(1, "other"), TaskType(77, "charge")])
def test_task_type_is_registered_once_by_id_and_by_name(clash: TaskType) -> None:
    registry = shop_registry()

    with pytest.raises(DuplicateRegistrationError, match="clashes with"):
        registry.register_task(task_class(clash))
    assert registry.task(77) is None


def test_task_gets_a_serializer_unless_it_has_one() -> None:
    registry = Registry()
    mine = attrs_task_serializer(Charge)
    registry.register_task_serializer(1, mine)

    registry.register_task(Charge)
    registry.register_task(Announce)

    assert registry.task_serializer(1) is mine
    assert registry.task_serializer(3) is not None
    assert registry.task_serializer(9) is None


def test_serializer_is_registered_once() -> None:
    registry = shop_registry()

    with pytest.raises(DuplicateRegistrationError):
        registry.register_task_serializer(1, attrs_task_serializer(Charge))


def test_task_that_is_no_attrs_class_needs_a_serializer_first() -> None:
    class Plain:
        type: ClassVar[TaskType] = TaskType(60, "plain")

        @property
        def kind(self) -> TaskKind:
            return ImmediateKind()

    registry = Registry()

    with pytest.raises(TypeError, match=r"Plain is not an attrs class: call register_task_serializer\(60"):
        registry.register_task(Plain)
    assert registry.task(60) is None


@pytest.mark.parametrize("type_", [None, 5, (1, "x"), "charge"])
def test_task_needs_a_type(type_: object) -> None:
    with pytest.raises(TypeError, match="Made needs a class attribute `type`"):
        Registry().register_task(task_class(type_))


def test_task_needs_a_kind() -> None:
    kindless = attrs.frozen(type("Kindless", (), {"type": TaskType(50, "kindless"), "knd": None}))

    with pytest.raises(TypeError, match="Kindless needs a property `kind`"):
        Registry().register_task(kindless)


@pytest.mark.parametrize("name", ["validates", "Validate", "valdate", "VALIDATE", "validate_", "validated"])
def test_misspelt_validate_is_refused(name: str) -> None:
    misspelt = task_class(**{name: lambda _self, _ref, _node: None})

    with pytest.raises(TypeError, match=f"Made.{name} looks like a misspelt `validate`"):
        Registry().register_task(misspelt)


def test_misspelt_validate_of_a_base_class_is_refused_too() -> None:
    class Base:
        def valdate(self, ref: Ref, node: Node) -> None: ...

    misspelt = attrs.frozen(type("Made", (Base, task_class()), {}))

    with pytest.raises(TypeError, match="misspelt `validate`"):
        Registry().register_task(misspelt)


@pytest.mark.parametrize("name", ["value", "validity", "deadline", "kinship", "_validates", "prototype"])
def test_other_names_are_fine(name: str) -> None:
    Registry().register_task(task_class(**{name: lambda _self: None}))


def test_validate_has_to_be_a_method() -> None:
    with pytest.raises(TypeError, match=r"Made\.validate has to be a method"):
        Registry().register_task(task_class(validate=True))
    with pytest.raises(TypeError, match=r"Made\.validate has to be a method"):
        Registry().register_task(task_class(validate=attrs.field(default=None)))


def test_validate_has_to_be_a_plain_function() -> None:
    async def validate(self: object, ref: Ref, node: Node) -> None: ...

    with pytest.raises(TypeError, match=r"Made\.validate has to be a plain function"):
        Registry().register_task(task_class(validate=validate))


@pytest.mark.parametrize("first", ["executor", "timer"])
@pytest.mark.parametrize("second", ["executor", "timer"])
def test_task_type_has_one_executor_of_either_kind(first: str, second: str) -> None:
    registry = shop_registry()
    register: dict[str, Callable[[], None]] = {
        "executor": lambda: registry.register_executor(Remind, run),
        "timer": lambda: registry.register_timer_executor(Remind, fire),
    }

    register[first]()
    with pytest.raises(DuplicateRegistrationError, match="has an executor already"):
        register[second]()

    assert (registry.executor(Remind) is run) == (first == "executor")
    assert (registry.timer_executor(Remind) is fire) == (first == "timer")


def test_timer_executor_has_to_be_a_plain_function() -> None:
    registry = shop_registry()

    with pytest.raises(TypeError, match="plain function"):
        registry.register_timer_executor(Remind, run)  # type: ignore[arg-type]

    assert registry.timer_executor(Remind) is None


def test_executor_of_something_that_is_no_task_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a class attribute `type`"):
        Registry().register_executor(Order, run)  # type: ignore[type-var]
