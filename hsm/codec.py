"""Codecs: definitions and serializers for data that is a protobuf message or an attrs class."""

from __future__ import annotations

import builtins
import functools
import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, Generic, Protocol, TypeVar, cast, overload, runtime_checkable
from uuid import UUID

import attrs
from google.protobuf.message import DecodeError, Message

from hsm.errors import InvalidTaskKindError, SerializationError
from hsm.machine import MachineDefinition, MachineType
from hsm.task import Task, TaskKind, TaskSerializer

__all__ = [
    "ResultCodec",
    "attrs_definition",
    "attrs_task_serializer",
    "proto_definition",
    "proto_task_serializer",
    "result_codec",
    "task_serializer",
]

DataT = TypeVar("DataT")
MessageT = TypeVar("MessageT", bound=Message)
TaskT = TypeVar("TaskT", bound=Task)
ResultT = TypeVar("ResultT")


@attrs.frozen
class _Definition(Generic[DataT]):
    type: MachineType
    serialize: Callable[[DataT], bytes]
    deserialize: Callable[[bytes], DataT]
    # Checked once, when data enters a tree: protobuf would serialize a message of another class, too.
    data_type: builtins.type[DataT] | None


@overload
def proto_definition(machine_type: MachineType, message: type[MessageT]) -> MachineDefinition[MessageT]: ...
@overload
def proto_definition(
    machine_type: MachineType,
    message: type[MessageT],
    *,
    wrap: Callable[[MessageT], DataT],
    unwrap: Callable[[DataT], MessageT],
) -> MachineDefinition[DataT]: ...
def proto_definition(
    machine_type: MachineType,
    message: type[MessageT],
    *,
    wrap: Callable[[MessageT], Any] | None = None,
    unwrap: Callable[[Any], MessageT] | None = None,
) -> MachineDefinition[Any]:
    """A definition of machines whose data is a protobuf message, or a class around one.

    Args:
        machine_type: id and name.
        message: the generated class.
        wrap: makes the data from a message, for data that has methods.
        unwrap: the message of the data.
    """
    parse = functools.partial(_parse, message)
    if wrap is None or unwrap is None:
        return _Definition(machine_type, message.SerializeToString, parse, message)
    return _Definition(
        machine_type,
        lambda data: unwrap(data).SerializeToString(),
        lambda data: wrap(parse(data)),
        wrap if isinstance(wrap, type) else None,
    )


def attrs_definition(machine_type: MachineType, class_: type[DataT]) -> MachineDefinition[DataT]:
    """A definition of machines whose data is an attrs class, stored as JSON.

    Fields may be of any type that cattrs structures: numbers, decimals, text, bytes, UUIDs, enums, aware
    datetimes, timedeltas, attrs classes, unions of them, and lists, tuples, sets and mappings of these. A
    field that is missing in old data takes its default; an unknown one is ignored.

    Needs the extra `attrs-codec`.

    Raises:
        TypeError: the class is not an attrs class.
    """
    return _Definition(machine_type, *_attrs_codec(class_), class_)


def proto_task_serializer(
    message: type[MessageT], *, wrap: Callable[[MessageT], TaskT], unwrap: Callable[[TaskT], MessageT]
) -> TaskSerializer[TaskT]:
    """A serializer of tasks whose payload is a protobuf message."""
    parse = functools.partial(_parse, message)
    return _TaskSerializer(lambda task: unwrap(task).SerializeToString(), lambda data: wrap(parse(data)))


def attrs_task_serializer(class_: type[TaskT]) -> TaskSerializer[TaskT]:
    """A serializer of tasks that are attrs classes, stored as JSON; fields as in `attrs_definition`.

    A class without fields needs no extra; one with fields needs `attrs-codec`.

    Raises:
        TypeError: the class is not an attrs class.
    """
    return _TaskSerializer(*_attrs_codec(class_))


def task_serializer(class_: type[TaskT]) -> TaskSerializer[TaskT]:
    """The serializer that fits a task class.

    Raises:
        TypeError: the class is not an attrs class; register a serializer for it.
    """
    if not _is_attrs(class_):
        raise TypeError(
            f"{class_.__qualname__} is not an attrs class:"
            f" call register_task_serializer({class_.type.id}, ...) before register_task"
        )
    return attrs_task_serializer(class_)


@attrs.frozen
class _TaskSerializer(Generic[TaskT]):
    serialize: Callable[[TaskT], bytes]
    _decode: Callable[[bytes], TaskT]

    def deserialize(self, data: bytes, kind: TaskKind, /) -> TaskT:
        task = self._decode(data)
        if type(task.kind) is not type(kind):
            raise InvalidTaskKindError(
                f"task {task.type.name!r} is of kind {type(task.kind).__name__},"
                f" but is stored as {type(kind).__name__}"
            )
        return task


@runtime_checkable
class ResultCodec(Protocol[ResultT]):
    """Results of calls to bytes and back."""

    def serialize(self, result: ResultT, /) -> bytes:
        """The persisted form of a result."""
        ...

    def deserialize(self, data: bytes, /) -> ResultT:
        """A fresh result; must accept everything that `serialize` ever wrote."""
        ...


@attrs.frozen
class _ResultCodec(Generic[ResultT]):
    serialize: Callable[[ResultT], bytes]
    deserialize: Callable[[bytes], ResultT]


def result_codec(class_: type[ResultT]) -> ResultCodec[ResultT]:
    """The codec that fits a class of results.

    A protobuf message is stored as such, bytes and None as they are, all else as JSON. Text, numbers and
    protobuf messages need no extra; attrs classes, lists, dates and the like need `attrs-codec`.
    """
    if class_ is bytes or class_ is type(None):
        return _ResultCodec(*_plain_codec(class_))
    if _is_message(class_):
        return _ResultCodec(*_message_codec(class_))
    if _is_attrs(class_):
        return _ResultCodec(*_attrs_codec(class_))
    return _ResultCodec(*_json_codec(class_))


def _is_message(class_: object) -> bool:
    """Whether it is a class of messages; `list[int]` is no class at all."""
    return isinstance(class_, type) and issubclass(class_, Message)


_Codec = tuple[Callable[[ResultT], bytes], Callable[[bytes], ResultT]]
_PLAIN: Final = (str, int, float, bool)


def _plain_codec(class_: type[ResultT]) -> _Codec[ResultT]:
    def serialize(result: ResultT) -> bytes:
        _require_class(class_, result)
        return result if isinstance(result, bytes) else b""

    def deserialize(data: bytes) -> ResultT:
        result: object = data if class_ is bytes else None
        return cast("ResultT", result)

    return serialize, deserialize


def _message_codec(class_: type[ResultT]) -> _Codec[ResultT]:
    def serialize(result: ResultT) -> bytes:
        _require_class(class_, result)
        assert isinstance(result, Message)
        return result.SerializeToString()

    def deserialize(data: bytes) -> ResultT:
        result: object = _parse(cast("type[Message]", class_), data)
        return cast("ResultT", result)

    return serialize, deserialize


def _json_codec(class_: type[ResultT]) -> _Codec[ResultT]:
    name = getattr(class_, "__name__", str(class_))

    def serialize(result: ResultT) -> bytes:
        if class_ in _PLAIN:
            _require_class(class_, result)
        try:
            value = result if class_ in _PLAIN else _converter().unstructure(result, class_)
            return json.dumps(value, separators=(",", ":")).encode()
        except Exception as error:
            raise SerializationError(f"{result!r} cannot be serialized as {name}: {error}") from error

    def deserialize(data: bytes) -> ResultT:
        try:
            value: object = json.loads(data)
            if class_ not in _PLAIN:
                value = _converter().structure(value, class_)
            elif type(value) is not class_:
                raise TypeError(f"a {type(value).__name__}")
        except Exception as error:
            raise SerializationError(f"{data[:80]!r} is not a {name}: {error}") from error
        return cast("ResultT", value)

    if class_ not in _PLAIN:
        _converter()
    return serialize, deserialize


def _parse(message: type[MessageT], data: bytes) -> MessageT:
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise SerializationError(f"{len(data)} bytes are not a {message.DESCRIPTOR.full_name}") from error


_NO_FIELDS: Final = b"{}"


def _is_attrs(class_: type) -> bool:
    """Whether a class is made by attrs; unlike `attrs.has`, this does not narrow the type away."""
    return attrs.has(class_)


def _fields_of(class_: type) -> tuple[attrs.Attribute[Any], ...]:
    """The fields of a class made by attrs; none for any other."""
    return attrs.fields(class_) if attrs.has(class_) else ()


def _attrs_codec(class_: type[DataT]) -> tuple[Callable[[DataT], bytes], Callable[[bytes], DataT]]:
    if not _is_attrs(class_):
        raise TypeError(f"{class_.__qualname__} is not an attrs class")
    if not _fields_of(class_):
        return functools.partial(_encode_nothing, class_), lambda _: class_()

    def serialize(data: DataT) -> bytes:
        _require_class(class_, data)
        try:
            return json.dumps(_converter().unstructure(data, class_), separators=(",", ":")).encode()
        except Exception as error:
            raise SerializationError(f"{class_.__qualname__} cannot be serialized: {error}") from error

    def deserialize(data: bytes) -> DataT:
        try:
            restored: DataT = _converter().structure(_fields(data), class_)
        except Exception as error:
            raise SerializationError(f"{data[:80]!r} is not a {class_.__qualname__}: {error}") from error
        return restored

    _converter()
    return serialize, deserialize


def _fields(data: bytes) -> dict[str, object]:
    fields: object = json.loads(data)
    if not isinstance(fields, dict):
        # An empty list would pass for an object that has all its defaults.
        raise TypeError(f"a JSON object is expected, not a {type(fields).__name__}")
    # JSON has no other keys than text.
    return cast("dict[str, object]", fields)


def _encode_nothing(class_: type, data: object) -> bytes:
    _require_class(class_, data)
    return _NO_FIELDS


def _require_class(class_: type, data: object) -> None:
    """Another class with the same fields would be stored, and come back as something else."""
    if type(data) is not class_:
        raise SerializationError(f"a {type(data).__qualname__} is not a {class_.__qualname__}")


@functools.cache
def _converter() -> Any:  # cattrs' converter; cattrs is an extra
    try:
        from cattrs.preconf.json import make_converter  # noqa: PLC0415 - an extra, imported on first use
    except ImportError as error:
        raise ImportError(
            "codecs for attrs classes need cattrs: pip install 'hsm-toolkit[attrs-codec]'"
        ) from error
    converter = make_converter()
    converter.register_unstructure_hook(timedelta, lambda value: value // timedelta(microseconds=1))
    converter.register_structure_hook(timedelta, lambda value, _: timedelta(microseconds=value))
    for class_ in (UUID, Decimal):
        converter.register_unstructure_hook(class_, str)
        converter.register_structure_hook(class_, lambda value, class_: class_(str(value)))
    # Of text and numbers, cattrs makes subclasses by itself; of bytes there are ids of events, for example.
    to_bytes = converter.get_structure_hook(bytes)
    converter.register_structure_hook(bytes, lambda value, class_: class_(to_bytes(value, bytes)))
    return converter
