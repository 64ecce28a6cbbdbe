"""How facts are written into events: by name and version, with upcasters for what was written long ago."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar, cast

import attrs

from hsm.aggregate.errors import EventRegistrationError, MissingUpcasterError, UnknownEventTypeError
from hsm.codec import attrs_definition
from hsm.errors import SerializationError
from hsm.machine import MachineDefinition, MachineType
from persistence.proto.nogevents_pb2 import Event as Message

__all__ = ["EventCodec", "NamedEvents", "Upcaster", "type_name"]

Upcaster = Callable[[dict[str, object]], dict[str, object]]
"""Makes the JSON fields of a fact of one version into those of the next version."""

FactT = TypeVar("FactT")

_NO_UPCASTERS: Final[Mapping[int, Upcaster]] = MappingProxyType({})


class EventCodec(Protocol[FactT]):
    """Facts to events and back."""

    def encode(self, fact: FactT, /) -> Message:
        """The event of a fact, without ids.

        Raises:
            SerializationError: the fact cannot be written; names its class.
        """
        ...

    def decode(self, message: Message, /) -> FactT:
        """The fact of an event.

        Raises:
            UnknownEventTypeError: the type of the event is not known.
            InvalidEventTypeError: the event cannot belong to this kind of aggregate.
            SerializationError: the event cannot be read.
        """
        ...


@attrs.frozen
class _Type:
    name: str
    class_: type
    version: int
    upcasters: Mapping[int, Upcaster]
    definition: MachineDefinition[object]


class NamedEvents(Generic[FactT]):
    """Facts that are attrs classes, each under a name of its own, stored as JSON: fill it once at start-up.

    The name and the version are stored with every event. When a class changes in a way that old fields do
    not fit, raise its version and register an upcaster from each earlier one; what is stored stays as it is.

    What would come back as something else, such as a list for a tuple or a class for its subclass, is refused
    when it is written, and not found out when it can no longer be helped.

    Fields are those of `hsm.attrs_definition`. Needs the extra `attrs-codec`.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, _Type] = {}
        self._by_class: dict[type, _Type] = {}

    def register(
        self,
        name: str,
        class_: type[FactT],
        *,
        version: int = 0,
        upcasters: Mapping[int, Upcaster] = _NO_UPCASTERS,
    ) -> None:
        """Make a class of facts known.

        Args:
            name: stored with each event; never to be changed.
            class_: an attrs class.
            version: of its fields, from 0.
            upcasters: by the version that they start from; each leads to the next one.

        Raises:
            EventRegistrationError: the name or the class is registered already.
            TypeError: the class is not an attrs class.
            ValueError: the name is empty, or an upcaster is missing, or leads beyond the version.
        """
        if not name:
            raise ValueError("an event type needs a name")
        if name in self._by_name or class_ in self._by_class:
            raise EventRegistrationError(f"event {name!r} ({class_.__qualname__}) is registered already")
        if sorted(upcasters) != list(range(version - len(upcasters), version)):
            raise ValueError(
                f"event {name!r}: upcasters from {sorted(upcasters)} do not lead to version {version}"
            )
        definition = attrs_definition(MachineType(0, name), class_)
        # Facts of the class alone are given to it.
        type_ = _Type(name, class_, version, upcasters, cast("MachineDefinition[object]", definition))
        self._by_name[name] = self._by_class[class_] = type_

    def encode(self, fact: FactT, /) -> Message:
        """See `EventCodec`."""
        type_ = self._by_class.get(type(fact))
        if type_ is None:
            raise SerializationError(f"no event is registered for a {type(fact).__qualname__}")
        payload = type_.definition.serialize(fact)
        restored = type_.definition.deserialize(payload)
        # What is not equal to itself, as nan is not, may look the same at least.
        if restored != fact and repr(restored) != repr(fact):
            raise SerializationError(f"event {type_.name!r}: {fact!r} would come back as {restored!r}")
        return Message(
            event=Message.EV_NAMED,
            type_name=type_.name,
            schema_version=type_.version,
            payload=payload,
        )

    def decode(self, message: Message, /) -> FactT:
        """See `EventCodec`."""
        type_ = self._by_name.get(message.type_name) if message.event == Message.EV_NAMED else None
        if type_ is None:
            raise UnknownEventTypeError(type_name(message))
        payload = message.payload
        if message.schema_version != type_.version:
            payload = _upcast(type_, message.schema_version, payload)
        # Registered with a class of facts.
        return cast("FactT", type_.definition.deserialize(payload))


def type_name(message: Message) -> str:
    """The name of an event's type, for people; its number if it has none."""
    if message.event == Message.EV_NAMED:
        return message.type_name
    known = Message.Type.DESCRIPTOR.values_by_number.get(message.event)
    return str(message.event) if known is None else known.name


def _upcast(type_: _Type, version: int, payload: bytes) -> bytes:
    try:
        fields: object = json.loads(payload)
    except ValueError as error:
        raise SerializationError(f"event {type_.name!r}: {payload[:80]!r} is no JSON") from error
    if not isinstance(fields, dict):
        raise SerializationError(f"event {type_.name!r}: {payload[:80]!r} is no JSON object")
    upcast = cast("dict[str, object]", fields)  # JSON has no other keys than text
    for step in range(version, type_.version):
        upcaster = type_.upcasters.get(step)
        if upcaster is None:
            raise MissingUpcasterError(type_.name, version, type_.version)
        try:
            upcast = upcaster(upcast)
        except Exception as error:
            raise SerializationError(
                f"event {type_.name!r}: {payload[:80]!r} of version {step} cannot be upcast: {error!r}"
            ) from error
    if version > type_.version:
        raise MissingUpcasterError(type_.name, version, type_.version)
    return json.dumps(upcast).encode()
