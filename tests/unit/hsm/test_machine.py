"""What can be told of a machine from its data alone."""

from __future__ import annotations

import attrs
import pytest

from hsm import MachineType, NotRegisteredError, Registry, attrs_definition, proto_definition
from hsm.machine import Lifecycle, lifecycle_of, state_name
from persistence.proto.hsm_pb2 import StateMachineKey
from tests.support.machines import (
    ORDER,
    ORDER_TYPE,
    PAYMENT,
    Counting,
    Order,
    OrderState,
    Parcel,
    Payment,
    shop_registry,
)


@attrs.define
class Job:
    state: object = None
    lifecycle: object = Lifecycle.COMPLETED


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (Order(OrderState.PAID), "PAID"),
        (Job(state="waiting"), "waiting"),
        (Job(state=3), "3"),
        (Job(), ""),
        (Parcel(), ""),
        (StateMachineKey(), ""),
    ],
)
def test_state_has_a_name(data: object, name: str) -> None:
    assert state_name(data) == name


@pytest.mark.parametrize(
    ("data", "lifecycle"),
    [
        (Job(), Lifecycle.COMPLETED),
        (Job(lifecycle=Lifecycle.FAILED), Lifecycle.FAILED),
        (Job(lifecycle="completed"), Lifecycle.RUNNING),
        (Order(), Lifecycle.RUNNING),
    ],
)
def test_machine_runs_until_its_data_says_otherwise(data: object, lifecycle: Lifecycle) -> None:
    assert lifecycle_of(data) is lifecycle


def test_type_of_data_is_told_by_its_class() -> None:
    registry = shop_registry()

    assert registry.type_of(Order()) == ORDER
    assert registry.type_of(Payment()) == PAYMENT


def test_data_of_no_registered_type_is_refused() -> None:
    registry = shop_registry(Counting(attrs_definition(ORDER_TYPE, Order)))

    for data in (Order(), StateMachineKey(), 5):
        with pytest.raises(NotRegisteredError, match="no registered machine type says that it holds a"):
            registry.type_of(data)


def test_type_that_is_registered_after_the_question_is_found() -> None:
    registry = Registry()
    with pytest.raises(NotRegisteredError):
        registry.type_of(StateMachineKey())

    registry.register_machine(proto_definition(MachineType(8, "key"), StateMachineKey))

    assert registry.type_of(StateMachineKey()) == 8


def test_class_of_two_types_has_to_be_named() -> None:
    registry = shop_registry()
    registry.register_machine(attrs_definition(MachineType(8, "second order"), Order))

    with pytest.raises(NotRegisteredError, match="2 registered machine types hold a Order; name the type"):
        registry.type_of(Order())
