"""What the wrong client code of the other files is about. Right by itself."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import ClassVar

import attrs

import hsm


class OrderState(enum.Enum):
    NEW = "new"
    PAID = "paid"


class ParcelState(enum.Enum):
    PACKED = "packed"
    SENT = "sent"


@attrs.define
class Order:
    state: OrderState = OrderState.NEW
    amount: int = 0


@attrs.define
class Parcel:
    state: ParcelState = ParcelState.PACKED
    weight: int = 0


@attrs.frozen
class Money:
    amount: int


@attrs.frozen
class Remind:
    type: ClassVar[hsm.TaskType] = hsm.TaskType(1, "remind")
    deadline: datetime

    @property
    def kind(self) -> hsm.TaskKind:
        return hsm.TimerKind(self.deadline)


@attrs.frozen
class Charge:
    type: ClassVar[hsm.TaskType] = hsm.TaskType(2, "charge")
    bank: str

    @property
    def kind(self) -> hsm.TaskKind:
        return hsm.OutboundKind(self.bank)


order = hsm.transitions(Order)
parcel = hsm.transitions(Parcel)


@order.move([OrderState.NEW], OrderState.PAID)
def pay(order: Order, event: Money) -> None:
    order.amount = event.amount


@parcel.move([ParcelState.PACKED], ParcelState.SENT)
def send(parcel: Parcel, event: str) -> None:
    print(parcel.weight, event)


def get_order() -> hsm.Node:
    return hsm.Node.new_root(hsm.Registry(), 1, Order())


root = get_order()
orders = hsm.Collection(root, 1, Order)
parcels = hsm.Collection(root, 2, Parcel)
