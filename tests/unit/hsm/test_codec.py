"""Codecs: data and tasks to bytes and back."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import attrs
import pytest

from hsm import (
    ImmediateKind,
    IncompatibleTypeError,
    InvalidTaskKindError,
    Key,
    MachineType,
    Node,
    OutboundKind,
    Registry,
    SerializationError,
    TaskKind,
    TaskType,
    TimerKind,
    TransitionOutput,
    attrs_definition,
    attrs_task_serializer,
    proto_definition,
    proto_task_serializer,
)
from persistence.journal import EventId
from persistence.proto.hsm_pb2 import StateMachineKey, StateMachineTaskInfo
from tests.support.machines import Announce, Charge, Order, OrderState, Parcel, Remind

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
THING = MachineType(5, "thing")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@attrs.frozen
class Card:
    number: str


@attrs.frozen
class Transfer:
    account: str
    urgent: bool = False


@attrs.define
class Everything:
    """One field for each kind of value."""

    colour: Colour
    level: Level
    at: datetime
    pause: timedelta
    card: Card
    means: Card | Transfer
    maybe: Transfer | None
    raw: bytes
    numbers: list[int]
    pair: tuple[str, float]
    colours: frozenset[Colour]
    by_name: dict[str, Card]
    by_colour: dict[Colour, timedelta]
    by_number: dict[int, datetime | None]
    plain: str | int | None
    id: UUID
    price: Decimal
    by_id: dict[UUID, Decimal | None]
    version: EventId
    cards: tuple[Card, ...] = ()


EVERYTHING = Everything(
    colour=Colour.BLUE,
    level=Level.HIGH,
    at=datetime(2024, 2, 29, 23, 59, 59, 999999, timezone(timedelta(hours=-3, minutes=-30))),
    pause=timedelta(days=-1, microseconds=1),
    card=Card("ü\x00\u2028"),
    means=Transfer("acc"),
    maybe=None,
    raw=bytes(range(256)),
    numbers=[-(2**70), 0, 2**70],
    pair=("x", 0.1),
    colours=frozenset(Colour),
    by_name={"": Card("1")},
    by_colour={Colour.RED: timedelta(microseconds=10**15 + 1)},
    by_number={-1: NOON, 2: None},
    plain=7,
    id=UUID(int=2**128 - 1),
    price=Decimal("-1.10"),
    by_id={UUID(int=0): Decimal("0.1"), UUID(int=1): None},
    version=EventId(b"sixteen bytes it"),
)


def there_and_back(value: Any) -> Any:
    definition = attrs_definition(THING, type(value))
    return definition.deserialize(definition.serialize(value))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"means": Card("2")},
        {"maybe": Transfer("b", urgent=True)},
        {"plain": "7"},
        {"plain": None},
        {"raw": b"", "numbers": [], "colours": frozenset(), "by_name": {}},
        {"cards": (Card("1"), Card("2"))},
        {"pause": timedelta.max, "at": datetime.max.replace(tzinfo=UTC)},
        {"pair": ("x", 1e308)},
        {"price": Decimal("1E+400")},
    ],
    ids=lambda changes: ",".join(changes) or "all",
)
def test_attrs_class_comes_back_with_every_kind_of_field(changes: dict[str, Any]) -> None:
    value = attrs.evolve(EVERYTHING, **changes)

    again = there_and_back(value)

    assert again == value
    assert again.at.utcoffset() == value.at.utcoffset()
    assert str(again.price) == str(value.price)
    assert type(again.version) is EventId
    assert type(again.means) is type(value.means)
    assert type(again.plain) is type(value.plain)
    assert again.level is value.level


def test_definition_says_its_type() -> None:
    assert attrs_definition(THING, Order).type == THING
    assert proto_definition(THING, StateMachineKey).type == THING


def test_missing_field_takes_its_default_and_an_unknown_one_is_ignored() -> None:
    definition = attrs_definition(THING, Order)

    assert definition.deserialize(b'{"state": "paid", "colour": "red"}') == Order(OrderState.PAID)
    assert definition.deserialize(b"{}") == Order()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"[1]",
        b"null",
        b'{"state": "gone"}',
        b'{"notes": 5}',
        b'{"state"',
    ],
)
def test_bytes_that_are_no_such_class_are_named(data: bytes) -> None:
    with pytest.raises(SerializationError, match="is not a Order"):
        attrs_definition(THING, Order).deserialize(data)


def test_error_shows_the_beginning_of_long_data_only() -> None:
    with pytest.raises(SerializationError) as caught:
        attrs_definition(THING, Order).deserialize(b"x" * 100_000)

    assert len(str(caught.value)) < 300


def test_value_that_has_no_bytes_is_named() -> None:
    with pytest.raises(SerializationError, match="Parcel cannot be serialized"):
        attrs_definition(THING, Parcel).serialize(Parcel(object()))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [Card("1"), Transfer("x"), None, {"number": "1"}])
def test_only_the_class_itself_is_serialized(value: Any) -> None:
    @attrs.frozen
    class Alike:
        number: str

    with pytest.raises(SerializationError, match="is not a"):
        attrs_definition(THING, Alike).serialize(value)


def test_class_without_fields_is_still_checked() -> None:
    @attrs.frozen
    class Empty:
        pass

    definition = attrs_definition(THING, Empty)

    assert definition.deserialize(definition.serialize(Empty())) == Empty()
    with pytest.raises(SerializationError, match=r"a Card is not a .*Empty"):
        definition.serialize(Card("1"))  # type: ignore[arg-type]


@pytest.mark.parametrize("class_", [int, dict, Colour, StateMachineKey])
def test_other_classes_have_no_attrs_codec(class_: type) -> None:
    with pytest.raises(TypeError, match=f"{class_.__name__} is not an attrs class"):
        attrs_definition(THING, class_)
    with pytest.raises(TypeError, match="is not an attrs class"):
        attrs_task_serializer(class_)


def test_bare_message_is_data() -> None:
    definition = proto_definition(THING, StateMachineKey)

    again = definition.deserialize(definition.serialize(StateMachineKey(type=4, id="x")))

    assert again == StateMachineKey(type=4, id="x")
    assert type(again) is StateMachineKey


def test_message_of_the_wrong_class_is_refused_at_the_door() -> None:
    registry = Registry()
    registry.register_machine(proto_definition(THING, StateMachineKey))

    with pytest.raises(IncompatibleTypeError, match="holds a StateMachineKey, not a StateMachineTaskInfo"):
        Node.new_root(registry, 5, StateMachineTaskInfo())


class Wrapped:
    """Data with methods, around a message."""

    def __init__(self, message: StateMachineKey) -> None:
        self.message = message

    def rename(self, new: str) -> None:
        self.message.id = new


def test_wrapped_message_is_data() -> None:
    definition = proto_definition(
        THING, StateMachineKey, wrap=Wrapped, unwrap=lambda wrapped: wrapped.message
    )
    registry = Registry()
    registry.register_machine(definition)
    root = Node.new_root(registry, 5, Wrapped(StateMachineKey(id="old")))

    root.transition(Wrapped, lambda wrapped: wrapped.rename("new"))
    again = Node.from_proto(registry, 5, root.to_proto())

    assert again.data(Wrapped).message.id == "new"


def test_bytes_that_are_no_such_message_are_named() -> None:
    with pytest.raises(SerializationError, match=r"3 bytes are not a hsm\.persistence\.v1\.StateMachineKey"):
        proto_definition(THING, StateMachineKey).deserialize(b"\xff\xff\xff")


@pytest.mark.parametrize("task", [Charge("acme"), Charge(""), Announce(), Remind(NOON)], ids=repr)
def test_attrs_task_comes_back(task: Charge | Announce | Remind) -> None:
    serializer = attrs_task_serializer(type(task))

    assert serializer.deserialize(serializer.serialize(task), task.kind) == task


@attrs.frozen
class Poke:
    """A task around a message; where it goes stands in its kind."""

    type: ClassVar[TaskType] = TaskType(70, "poke")
    message: StateMachineKey

    @property
    def kind(self) -> TaskKind:
        return OutboundKind(self.message.id)


def test_message_task_comes_back() -> None:
    serializer = proto_task_serializer(StateMachineKey, wrap=Poke, unwrap=lambda task: task.message)
    task = Poke(StateMachineKey(type=1, id="there"))

    assert serializer.deserialize(serializer.serialize(task), task.kind) == task
    with pytest.raises(SerializationError):
        serializer.deserialize(b"\xff\xff\xff", task.kind)


@pytest.mark.parametrize(
    ("task", "stored"),
    [
        (Charge(), TimerKind(NOON)),
        (Charge(), ImmediateKind()),
        (Remind(NOON), OutboundKind("x")),
        (Announce(), TimerKind(NOON)),
    ],
    ids=repr,
)
def test_task_that_is_stored_as_another_kind_is_refused(
    task: Charge | Announce | Remind, stored: TaskKind
) -> None:
    serializer = attrs_task_serializer(type(task))

    with pytest.raises(
        InvalidTaskKindError,
        match=f"{task.type.name!r} is of kind {type(task.kind).__name__},"
        f" but is stored as {type(stored).__name__}",
    ):
        serializer.deserialize(serializer.serialize(task), stored)


def test_undecodable_task_is_named() -> None:
    with pytest.raises(SerializationError, match="is not a Remind"):
        attrs_task_serializer(Remind).deserialize(b"garbage", TimerKind(NOON))


def test_timer_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="deadline 2024-01-01T12:00:00 has no time zone"):
        TimerKind(NOON.replace(tzinfo=None))


def test_kinds_are_values() -> None:
    assert OutboundKind("a") == OutboundKind("a") != OutboundKind("b")
    assert len({ImmediateKind(), ImmediateKind(), TimerKind(NOON), TimerKind(NOON)}) == 2
    assert TransitionOutput() == TransitionOutput(())
    assert len({Key(1, "a"), Key(1, "a"), Key(2, "a")}) == 2
