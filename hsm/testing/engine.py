"""An engine for tests of machines: in memory, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self

import attrs

from hsm.engine import Engine, EngineOptions
from hsm.engine.clock import from_nanos
from hsm.engine.ids import IdSource
from hsm.executor import Environment
from hsm.registry import Registry
from hsm.testing.clock import FakeClock
from persistence.store import EngineStore
from persistence.stores.memory import MemoryStore

__all__ = ["TestEngine"]

_TURNS: Final = 3  # until whoever waits for the clock has woken up
_engines: Final = itertools.count()
# A test that goes through years must not stop every second on the way.
_OPTIONS: Final = EngineOptions(shard_count=1, poll_interval=timedelta(hours=1), lease_seconds=3 * 3600)


class TestEngine(Engine):
    """An engine that a test can take through days in no time: `async with TestEngine(registry) as engine`.

    Time stands still until `skip`, `skip_to` or `skip_to_next`; each returns when there is nothing left to do
    by then. Chance is seeded, so that a test repeats itself. Unless told otherwise it is alone on a new store
    in memory; to test a restart, leave the block, and open another one on the same store and clock.

    Not for executors that hang: `drain` and the skips wait for them. Such tests move `clock` themselves.

    Attributes:
        clock: the engine's clock.
        store: where it writes.
    """

    __test__ = False  # the name is no invitation to pytest

    def __init__(
        self,
        registry: Registry,
        store: EngineStore | None = None,
        options: EngineOptions | None = None,
        *,
        clock: FakeClock | None = None,
        run_tasks: bool = True,
        environment: Callable[[Engine], Environment] | None = None,
    ) -> None:
        """Make an engine.

        Args:
            registry: as for `Engine`.
            store: open already; a new one in memory if it is left out.
            options: as for `Engine`, but for the clock, which is always a fake one.
            clock: its own if it is left out.
            run_tasks: as for `Engine`.
            environment: as for `Engine`.
        """
        self.clock: FakeClock = clock or FakeClock()
        own = MemoryStore()
        self._own_store = own if store is None else None
        self.store: EngineStore = own if store is None else store
        chosen = options or attrs.evolve(_OPTIONS, random=random.Random(0))
        super().__init__(
            registry,
            self.store,
            attrs.evolve(chosen, clock=self.clock),
            run_tasks=run_tasks,
            environment=environment,
        )
        # Two engines on one store must not make the same ids, though both begin in the same millisecond.
        self._ids = IdSource(random.Random(next(_engines)))

    async def __aenter__(self) -> Self:
        if self._own_store is not None:
            await self._own_store.__aenter__()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            if self._own_store is not None:
                await self._own_store.aclose()

    async def skip(self, duration: timedelta) -> None:
        """Let time pass; timers and retries on the way run at their times."""
        await self.skip_to(self.now() + duration)

    async def skip_to(self, moment: datetime) -> None:
        """Let it be `moment`; timers and retries on the way run at their times."""
        await self.clock.skip_to(moment, settle=self._settle)

    async def _settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await self.drain()

    async def skip_to_next(self) -> datetime | None:
        """Go to the time at which the next timer or retry is due; that time, or None if there is none."""
        await self.drain()
        due = self._dispatcher.next_due()
        if due is None:
            return None
        # A clock that counts microseconds must not stop just short of a deadline in nanoseconds.
        moment = max(from_nanos(due + 999), self.now())
        await self.skip_to(moment)
        return moment

    async def run_until_idle(self, *, steps: int = 1000) -> None:
        """Go from deadline to deadline until there is none left.

        Raises:
            RuntimeError: there was still one after `steps` of them.
        """
        for _ in range(steps):
            if await self.skip_to_next() is None:
                return
        raise RuntimeError(f"the engine is still busy after {steps} deadlines, at {self.now().isoformat()}")
