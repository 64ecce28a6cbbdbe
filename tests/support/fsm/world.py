"""The data that stores of machines are tested on: opened any number of times, with time that can pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self, TypedDict, Unpack

from hsm.engine.clock import Clock, SystemClock
from hsm.fsm import DatabaseOptions, DatabaseStore, StoreManager
from hsm.fsm._rows import machine_partition
from persistence import EngineStore
from persistence.options import prefix_end
from persistence.store import Item, SetRequest


class Kept(TypedDict, total=False):
    """What is kept, and for how long."""

    event_ttl: timedelta
    outcome_ttl: timedelta
    history_cap: int | None
    notify: bool


class World(Protocol):
    """One set of data. A suite opens stores on it, as many processes would."""

    async def open(self, *, namespace: str = "default", **kept: Unpack[Kept]) -> StoreManager:
        """Another store on the data."""
        ...

    async def wait(self, seconds: float) -> None:
        """Let time pass that a database expires rows by."""
        ...

    async def damage(self, name: str, machine: str, event_id: str, value: bytes) -> None:
        """Put something else in place of a pending event, as a fault of the disk would."""
        ...

    async def set_apart(self, name: str, machine: str, event_id: str) -> bytes | None:
        """What was kept of a damaged event, for people to look at."""
        ...


class DatabaseWorld:
    """Data in a database of the storage contract."""

    def __init__(
        self,
        open_store: Callable[[], EngineStore],
        wait: Callable[[float], Awaitable[None]],
        clock: Clock | None = None,
        *,
        apart: str = "",
    ) -> None:
        """Data of its own in the database, if it is set apart from others by a name."""
        self._open_store = open_store
        self._wait = wait
        self._clock = clock or SystemClock()
        self._apart = apart
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def store(self) -> EngineStore:
        """The database itself, to look behind the curtain."""
        return await self._stack.enter_async_context(self._open_store())

    async def open(self, *, namespace: str = "default", **kept: Unpack[Kept]) -> DatabaseStore:
        store = await self.store()
        chosen = DatabaseOptions(clock=self._clock, **kept)
        return await self._stack.enter_async_context(
            DatabaseStore(store, namespace=self._apart + namespace, options=chosen)
        )

    async def wait(self, seconds: float) -> None:
        await self._wait(seconds)

    async def damage(self, name: str, machine: str, event_id: str, value: bytes) -> None:
        store, partition = await self.store(), machine_partition(f"{self._apart}default", name)
        (row,) = await self._rows("p", name, machine, event_id)
        await store.set(SetRequest(partition=partition, key=row.key, value=value))

    async def set_apart(self, name: str, machine: str, event_id: str) -> bytes | None:
        return next((row.value for row in await self._rows("d", name, machine, event_id)), None)

    async def _rows(self, kind: str, name: str, machine: str, event_id: str) -> list[Item]:
        store, partition = await self.store(), machine_partition(f"{self._apart}default", name)
        prefix = f"{kind}/{machine}/"
        rows = store.scan(partition, prefix, prefix_end(prefix))
        return [row async for row in rows if row.key.endswith(f"/{event_id}")]
