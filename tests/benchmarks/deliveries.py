"""The machine of the benchmarks: a delivery that waits and is sent, its data kept in three ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import attrs
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from hsm import (
    MachineType,
    OutboundKind,
    Registry,
    TaskKind,
    TaskType,
    TransitionOutput,
    proto_definition,
    transitions,
)
from hsm.machine import Lifecycle

__all__ = [
    "ATTRS",
    "MESSAGE",
    "SENT",
    "SLOTS",
    "URL",
    "WAITING",
    "AttrsDelivery",
    "Delivery",
    "DeliveryMessage",
    "Send",
    "attrs_back",
    "attrs_send",
    "back",
    "message_back",
    "message_send",
    "new_registry",
    "schedule",
    "send",
]

SLOTS: Final = MachineType(1, "delivery: a class with slots")
MESSAGE: Final = MachineType(2, "delivery: a protobuf message")
ATTRS: Final = MachineType(3, "delivery: an attrs class")

WAITING: Final = 0
SENT: Final = 1
URL: Final = "https://example.org/hook"

_FIELDS: Final[Mapping[str, FieldDescriptorProto.Type.ValueType]] = {
    "state": FieldDescriptorProto.TYPE_INT32,
    "attempts": FieldDescriptorProto.TYPE_INT32,
    "url": FieldDescriptorProto.TYPE_STRING,
}


def _message_class() -> type[Message]:
    """What protoc would generate, made here to spare the repository one more generated module."""
    file = FileDescriptorProto(name="benchmark.proto", package="benchmark", syntax="proto3")
    message = file.message_type.add(name="Delivery")
    for number, (name, kind) in enumerate(_FIELDS.items(), start=1):
        message.field.add(name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("benchmark.Delivery"))


if TYPE_CHECKING:

    class DeliveryMessage(Message):
        state: int
        attempts: int
        url: str

        def __init__(self, *, state: int = 0, attempts: int = 0, url: str = "") -> None: ...

else:
    DeliveryMessage = _message_class()


class Delivery:
    """A class with slots, stored through a protobuf message that is made for the occasion."""

    __slots__ = ("attempts", "state", "url")

    def __init__(self, state: int = WAITING, attempts: int = 0, url: str = URL) -> None:
        self.state = state
        self.attempts = attempts
        self.url = url

    @property
    def lifecycle(self) -> Lifecycle:
        return Lifecycle.COMPLETED if self.state == SENT else Lifecycle.RUNNING


@attrs.define
class AttrsDelivery:
    """An attrs class, stored as JSON by the attrs codec."""

    state: int = WAITING
    attempts: int = 0
    url: str = URL


class _DeliveryDefinition:
    type = SLOTS
    data_type = Delivery

    @staticmethod
    def serialize(data: Delivery, /) -> bytes:
        return DeliveryMessage(state=data.state, attempts=data.attempts, url=data.url).SerializeToString()

    @staticmethod
    def deserialize(data: bytes, /) -> Delivery:
        message = DeliveryMessage.FromString(data)
        return Delivery(message.state, message.attempts, message.url)


@attrs.frozen
class Send:
    """The outbound call of a delivery."""

    type: ClassVar[TaskType] = TaskType(1, "send")
    destination: str

    @property
    def kind(self) -> TaskKind:
        return OutboundKind(self.destination)


class _SendSerializer:
    @staticmethod
    def serialize(task: Send, /) -> bytes:
        return task.destination.encode()

    @staticmethod
    def deserialize(data: bytes, kind: TaskKind, /) -> Send:
        assert isinstance(kind, OutboundKind)
        return Send(data.decode())


_delivery = transitions(Delivery)
_message = transitions(DeliveryMessage)
_attrs = transitions(AttrsDelivery)


@_delivery.move([WAITING], WAITING)
def schedule(delivery: Delivery, destination: str) -> TransitionOutput:
    return TransitionOutput((Send(destination),))


@_delivery.move([WAITING], SENT)
def send(delivery: Delivery, attempts: int) -> None:
    delivery.attempts += attempts


@_delivery.move([SENT], WAITING)
def back(delivery: Delivery, attempts: int) -> None:
    delivery.attempts -= attempts


@_message.move([WAITING], SENT)
def message_send(delivery: DeliveryMessage, attempts: int) -> None:
    delivery.attempts += attempts


@_message.move([SENT], WAITING)
def message_back(delivery: DeliveryMessage, attempts: int) -> None:
    delivery.attempts -= attempts


@_attrs.move([WAITING], SENT)
def attrs_send(delivery: AttrsDelivery, attempts: int) -> None:
    delivery.attempts += attempts


@_attrs.move([SENT], WAITING)
def attrs_back(delivery: AttrsDelivery, attempts: int) -> None:
    delivery.attempts -= attempts


def new_registry() -> Registry:
    """A registry of the machines and of `Send`, which has no executor yet."""
    registry = Registry()
    registry.register_machine(_DeliveryDefinition())
    registry.register_machine(proto_definition(MESSAGE, DeliveryMessage))
    registry.register_task_serializer(Send.type.id, _SendSerializer())
    registry.register_task(Send)
    return registry
