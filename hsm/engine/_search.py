"""Search attributes in rows: their messages, the index, and which rows a filter has to look at."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from hsm.engine.clock import from_nanos, to_nanos
from hsm.engine.search import Between, SearchValue
from hsm.errors import InvalidSearchAttributeError
from persistence.executions import escape, prefix_end
from persistence.proto.execution_pb2 import SearchAttribute

__all__ = ["index_keys", "index_ranges", "matches", "read_value", "write_value"]

_MIDDLE: Final = 2**63
_SIGN: Final = 1 << 63
_ALL_BITS: Final = 2**64 - 1
# Longer texts are found all the same: the index says where to look, the execution's row what is there.
_INDEXED_CHARACTERS: Final = 64


def matches(value: SearchValue | None, wanted: SearchValue | Between) -> bool:
    """Whether a value is what somebody looks for."""
    if value is None:
        return False
    if isinstance(wanted, Between):
        return wanted.matches(value)
    if not isinstance(value, str) and isinstance(value, Sequence):
        return wanted in value if isinstance(wanted, str) else list(value) == _keywords(wanted)
    return type(value) is type(wanted) and value == wanted


def _keywords(wanted: SearchValue) -> list[str] | None:
    return list(wanted) if isinstance(wanted, Sequence) else None


def write_value(message: SearchAttribute, name: str, value: SearchValue) -> None:
    """Put a value into a message.

    Raises:
        InvalidSearchAttributeError: it is of no type that can be searched, or out of range.
    """
    try:
        if isinstance(value, bool):
            message.bool_value = value
        elif isinstance(value, int):
            message.int_value = value
        elif isinstance(value, float):
            message.float_value = value
        elif isinstance(value, str):
            message.text_value = value
        elif isinstance(value, datetime):
            message.time_nanos = to_nanos(value)
        else:
            message.keywords.values.extend(value)
            message.keywords.SetInParent()
    except (TypeError, ValueError) as error:
        raise InvalidSearchAttributeError(
            f"search attribute {name!r} cannot be {value!r}: {error}"
        ) from error


def read_value(message: SearchAttribute) -> SearchValue:
    """The value in a message."""
    which = message.WhichOneof("value")
    if which == "bool_value":
        return message.bool_value
    if which == "int_value":
        return message.int_value
    if which == "float_value":
        return message.float_value
    if which == "time_nanos":
        return from_nanos(message.time_nanos)
    if which == "keywords":
        return tuple(message.keywords.values)
    return message.text_value


def index_prefix(namespace: str, name: str) -> str:
    """Prefix of the index rows of one attribute."""
    return f"a/{escape(namespace)}/{escape(name)}/"


def index_values(value: SearchValue) -> list[str]:
    """The segments under which a value is indexed. Those of numbers and times sort as the values do."""
    if isinstance(value, bool):
        return [f"b{int(value)}"]
    if isinstance(value, int):
        return [f"i{value + _MIDDLE:020d}"]
    if isinstance(value, float):
        (bits,) = struct.unpack(">Q", struct.pack(">d", value + 0.0))
        return [f"f{bits ^ (_ALL_BITS if bits & _SIGN else _SIGN):016x}"]
    if isinstance(value, str):
        return [f"k{escape(value[:_INDEXED_CHARACTERS])}"]
    if isinstance(value, datetime):
        return [f"t{to_nanos(value) + _MIDDLE:020d}"]
    return sorted({f"k{escape(keyword[:_INDEXED_CHARACTERS])}" for keyword in value})


def index_keys(namespace: str, id_: str, run_id: str, attributes: Mapping[str, SearchAttribute]) -> list[str]:
    """The keys of all index rows of an execution."""
    return [
        f"{index_prefix(namespace, name)}{value}/{escape(id_)}/{escape(run_id)}"
        for name, message in attributes.items()
        for value in index_values(read_value(message))
    ]


def index_ranges(namespace: str, name: str, wanted: SearchValue | Between) -> list[tuple[str, str]] | None:
    """The ranges of index rows to look at; None if the index is of no help."""
    prefix = index_prefix(namespace, name)
    if isinstance(wanted, Between):
        low, high = wanted.low, wanted.high
        if low is None and high is None:
            return [(prefix, prefix_end(prefix))]
        if isinstance(low, str) or isinstance(high, str):
            # The index does not sort as text does, where `/` or `%` are in it.
            return [(f"{prefix}k", f"{prefix}l")]
        if isinstance(low, datetime) or isinstance(high, datetime):
            return [(_bound(prefix, low, "t"), _bound(prefix, high, "u"))]
        whole_low = low if low is None else _whole(low)
        whole_high = high if high is None else _whole(high)
        return [
            (_bound(prefix, whole_low, "i"), _bound(prefix, whole_high, "j")),
            (
                _bound(prefix, low if low is None else float(low), "f"),
                _bound(prefix, high if high is None else float(high), "g"),
            ),
        ]
    values = index_values(wanted)
    if len(values) != 1:
        return None
    start = f"{prefix}{values[0]}/"
    return [(start, prefix_end(start))]


def _whole(bound: float) -> int:
    """The least whole number, among those that can be kept, that is no less than a bound."""
    if math.isinf(bound):
        return _MIDDLE - 1 if bound > 0 else -_MIDDLE
    return max(-_MIDDLE, min(math.ceil(bound), _MIDDLE - 1))


def _bound(prefix: str, bound: SearchValue | None, default: str) -> str:
    return prefix + (default if bound is None else index_values(bound)[0])
