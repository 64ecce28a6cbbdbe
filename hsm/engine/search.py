"""Search attributes: values that the root of an execution shows, and that listings are filtered by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

import attrs

__all__ = ["Between", "HasSearchAttributes", "SearchValue"]

SearchValue: TypeAlias = bool | int | float | str | datetime | Sequence[str]
"""A value of a search attribute; a sequence of keywords is found by any of them."""


@runtime_checkable
class HasSearchAttributes(Protocol):
    """Data of a root that shows values to listings."""

    def search_attributes(self) -> Mapping[str, SearchValue]:
        """The values by name, told from the data alone. Asked for whenever the root has changed."""
        ...


Bound: TypeAlias = int | float | str | datetime | None


def _check_bound(_: Between, attribute: attrs.Attribute[Bound], value: Bound) -> None:
    if isinstance(value, datetime) and value.utcoffset() is None:
        raise ValueError(f"{attribute.name} {value.isoformat()} has no time zone")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{attribute.name} is no number")


@attrs.frozen
class Between:
    """Matches values from `low` on, below `high`; None is no bound. For numbers, text and times.

    Attributes:
        low: the least value that matches; a time is aware.
        high: the first value that is too great.
    """

    low: Bound = attrs.field(default=None, validator=_check_bound)
    high: Bound = attrs.field(default=None, validator=_check_bound)

    def matches(self, value: SearchValue) -> bool:
        """Whether a value is within the bounds; one of another type is not."""
        low, high = self.low, self.high
        if isinstance(value, datetime):
            return (low is None or (isinstance(low, datetime) and low <= value)) and (
                high is None or (isinstance(high, datetime) and value < high)
            )
        if isinstance(value, str):
            return (low is None or (isinstance(low, str) and low <= value)) and (
                high is None or (isinstance(high, str) and value < high)
            )
        if isinstance(value, int | float) and not isinstance(value, bool):
            return (low is None or (isinstance(low, int | float) and low <= value)) and (
                high is None or (isinstance(high, int | float) and value < high)
            )
        return False
