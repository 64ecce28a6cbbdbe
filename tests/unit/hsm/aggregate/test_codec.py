"""Facts in events: names, versions, upcasters, and nothing that changes its type in silence."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import attrs
import pytest

from hsm.aggregate import EventRegistrationError, MissingUpcasterError, NamedEvents, UnknownEventTypeError
from hsm.errors import SerializationError
from persistence.proto.nogevents_pb2 import Event as Message


@attrs.frozen
class Weighed:
    grams: int
    at: datetime
    tags: tuple[str, ...] = ()


@attrs.frozen
class Lost:
    pass


@attrs.frozen
class HeavyWeighed(Weighed):
    pass


AT = datetime(2030, 1, 1, 12, 30, tzinfo=UTC)


@pytest.fixture
def events() -> NamedEvents[Weighed | Lost]:
    events = NamedEvents[Weighed | Lost]()
    events.register(
        "weighed",
        Weighed,
        version=2,
        upcasters={
            0: lambda old: {"kilograms": old["weight"], "at": old["at"]},
            1: lambda old: {"grams": int(str(old["kilograms"])) * 1000, "at": old["at"]},
        },
    )
    events.register("lost", Lost)
    return events


@pytest.mark.parametrize("fact", [Weighed(3, AT, ("a", "b")), Lost()])
def test_fact_comes_back_as_it_was(events: NamedEvents[Weighed | Lost], fact: Weighed | Lost) -> None:
    message = events.encode(fact)

    assert events.decode(Message.FromString(message.SerializeToString())) == fact


def test_name_and_version_stand_in_the_event(events: NamedEvents[Weighed | Lost]) -> None:
    message = events.encode(Weighed(3, AT))

    assert (message.event, message.type_name, message.schema_version) == (Message.EV_NAMED, "weighed", 2)


@pytest.mark.parametrize(
    ("version", "fields"), [(0, '"weight": 2'), (1, '"kilograms": 2'), (2, '"grams": 2000')]
)
def test_earlier_versions_are_brought_up_to_date(
    events: NamedEvents[Weighed | Lost], version: int, fields: str
) -> None:
    payload = f'{{{fields}, "at": "{AT.isoformat()}"}}'.encode()
    message = Message(event=Message.EV_NAMED, type_name="weighed", schema_version=version, payload=payload)

    assert events.decode(message) == Weighed(2000, AT)


def test_later_version_is_an_error_that_names_it(events: NamedEvents[Weighed | Lost]) -> None:
    message = Message(event=Message.EV_NAMED, type_name="weighed", schema_version=3, payload=b"{}")

    with pytest.raises(MissingUpcasterError, match="version 3 of event 'weighed'"):
        events.decode(message)


@pytest.mark.parametrize("payload", [b"", b"[]", b"nonsense", b"{}", b'{"grams": "many", "at": 3}'])
@pytest.mark.parametrize("version", [1, 2])
def test_damaged_payload_is_an_error(
    events: NamedEvents[Weighed | Lost], payload: bytes, version: int
) -> None:
    message = Message(event=Message.EV_NAMED, type_name="weighed", schema_version=version, payload=payload)

    with pytest.raises(SerializationError, match="eighed"):
        events.decode(message)


@pytest.mark.parametrize(
    "message",
    [
        Message(event=Message.EV_NAMED, type_name="found"),
        Message(event=Message.EV_SNAPSHOT_BEGIN, type_name="weighed"),
    ],
)
def test_unknown_type_is_an_error(events: NamedEvents[Weighed | Lost], message: Message) -> None:
    with pytest.raises(UnknownEventTypeError):
        events.decode(message)


def test_class_that_is_not_registered_is_an_error_that_names_it(
    events: NamedEvents[Weighed | Lost],
) -> None:
    with pytest.raises(SerializationError, match="HeavyWeighed"):
        events.encode(HeavyWeighed(3, AT))


def test_value_that_cannot_be_stored_is_an_error_that_names_the_class() -> None:
    @attrs.frozen
    class Turned:
        by: complex

    events = NamedEvents[Turned]()
    events.register("turned", Turned)

    with pytest.raises(SerializationError, match="Turned"):
        events.encode(Turned(1j))


@attrs.frozen
class Measured:
    values: tuple[float, ...] = ()
    of: Lost | None = None
    count: int = 0


@attrs.frozen
class MeasuredAnything:
    value: object


@attrs.frozen
class LostAgain(Lost):
    times: int = 2


@pytest.mark.parametrize(
    "fact",
    [
        Measured(values=[1.5]),  # type: ignore[arg-type]  # what is refused
        Measured(of=LostAgain()),
        Measured(count=1.5),  # type: ignore[arg-type]  # what is refused
        MeasuredAnything((1, 2)),
    ],
)
def test_fact_that_would_come_back_as_something_else_is_not_written(
    fact: Measured | MeasuredAnything,
) -> None:
    events = NamedEvents[Measured | MeasuredAnything]()
    events.register("measured", Measured)
    events.register("measured anything", MeasuredAnything)

    with pytest.raises(SerializationError, match="easured"):
        events.encode(fact)


def test_what_is_not_equal_to_itself_comes_back_all_the_same() -> None:
    events = NamedEvents[Measured]()
    events.register("measured", Measured)

    (value,) = events.decode(events.encode(Measured(values=(float("nan"),)))).values
    assert math.isnan(value)


def test_names_and_classes_are_registered_once(events: NamedEvents[Weighed | Lost]) -> None:
    with pytest.raises(EventRegistrationError):
        events.register("lost", Weighed)
    with pytest.raises(EventRegistrationError):
        events.register("lost again", Lost)


@pytest.mark.parametrize("steps", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_upcasters_have_to_lead_to_the_version(steps: tuple[int, ...]) -> None:
    events = NamedEvents[Lost]()

    if steps in {(1,), (0, 1)}:
        events.register("lost", Lost, version=2, upcasters=dict.fromkeys(steps, dict))
    else:
        with pytest.raises(ValueError, match="do not lead"):
            events.register("lost", Lost, version=2, upcasters=dict.fromkeys(steps, dict))


def test_other_classes_are_refused() -> None:
    with pytest.raises(TypeError):
        NamedEvents[str]().register("text", str)
    with pytest.raises(ValueError, match="name"):
        NamedEvents[Lost]().register("", Lost)
