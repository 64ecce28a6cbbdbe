"""Turns: who writes a machine next. In a process, who asked first; among processes, who is faster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import attrs

__all__ = ["Turns", "pause_after"]

_SHORTEST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.1


@attrs.define
class _Queue:
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    users: int = 0


class Turns:
    """One writer at a time for each machine. Without it, steady events would starve all others."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str], _Queue] = {}

    @asynccontextmanager
    async def turn(self, partition: str, id_: str) -> AsyncGenerator[None]:
        """The block runs when all that asked before are done."""
        key = (partition, id_)
        queue = self._queues.setdefault(key, _Queue())
        queue.users += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.users -= 1
            if not queue.users:
                del self._queues[key]


async def pause_after(attempt: int) -> None:
    """Wait a moment after another process was faster: longer after more attempts, and by chance."""
    longest = min(_SHORTEST_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS)
    await asyncio.sleep(random.uniform(0, longest))
