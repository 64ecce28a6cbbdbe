"""A database that takes little at once, as large ones do of what is larger still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import attrs

from persistence.decision import prepare
from persistence.store import EngineStore, Feature, Limits, Operation

__all__ = ["Small", "small"]


class Small:
    """A store with other limits."""

    def __init__(self, inner: EngineStore, **limits: int) -> None:
        self._inner = inner
        self.limits: Limits = attrs.evolve(inner.limits, **limits)
        self.features: frozenset[Feature] = inner.features

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def multi(self, operations: Sequence[Operation]) -> str:
        prepare(operations, self.limits)
        return await self._inner.multi(operations)


def small(inner: EngineStore, **limits: int) -> EngineStore:
    """A store in front of another one, which takes no more than these limits."""
    return cast("EngineStore", Small(inner, **limits))
