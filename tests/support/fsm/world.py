"""The data that stores of machines are tested on: opened any number of times, with time that can pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self, TypedDict, Unpack

from hsm.engine.clock import Clock, SystemClock
from hsm.fsm import DatabaseOptions, DatabaseStore, StoreManager
from persistence import EngineStore


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
