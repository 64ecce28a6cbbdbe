"""A bounded cache of states, and a lock for each aggregate that somebody works on."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar
from uuid import UUID

__all__ = ["Cache", "Locks"]

ValueT = TypeVar("ValueT")


class Cache(Generic[ValueT]):
    """Keeps the values that were used last."""

    __slots__ = ("_size", "_values")

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[UUID, ValueT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, id_: UUID) -> ValueT | None:
        value = self._values.get(id_)
        if value is not None:
            self._values.move_to_end(id_)
        return value

    def put(self, id_: UUID, value: ValueT) -> None:
        self._values[id_] = value
        self._values.move_to_end(id_)
        while len(self._values) > self._size:
            self._values.popitem(last=False)

    def drop(self, id_: UUID) -> None:
        self._values.pop(id_, None)


class Locks:
    """One lock for each id, for as long as somebody holds it or waits for it."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[UUID, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, id_: UUID) -> AsyncGenerator[None, None]:
        lock, users = self._locks.get(id_, (asyncio.Lock(), 0))
        self._locks[id_] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[id_]
            if users == 1:
                del self._locks[id_]
            else:
                self._locks[id_] = lock, users - 1
