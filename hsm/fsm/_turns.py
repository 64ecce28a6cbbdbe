"""Turns: who writes a machine next. In a process, who asked first; among processes, who is faster."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

__all__ = ["Turns", "pause_after"]

_SHORTEST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.1

Key: TypeAlias = tuple[str, str]
"""Partition, and id of a machine."""


class Turns:
    """One writer at a time for each machine. Without it, steady events would starve all others."""

    def __init__(self) -> None:
        # A machine is in here while somebody has the turn; None until somebody waits.
        self._queues: dict[Key, deque[asyncio.Future[None]] | None] = {}

    @asynccontextmanager
    async def turn(self, partition: str, id_: str) -> AsyncGenerator[None]:
        """The block runs when all that asked before are done."""
        key = (partition, id_)
        if not self.take(key):
            await self.wait(key)
        try:
            yield
        finally:
            self.pass_on(key)

    def take(self, key: Key) -> bool:
        """Take the turn if nobody has it, which costs nearly nothing; else `wait`. Then `pass_on`."""
        if key in self._queues:
            return False
        self._queues[key] = None
        return True

    async def wait(self, key: Key) -> None:
        """Return when all that asked before are done."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues[key]
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.pass_on(key)  # it had come at the same moment
            raise

    def pass_on(self, key: Key) -> None:
        """Let the next one have the turn."""
        queue = self._queues[key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._queues[key]


async def pause_after(attempt: int) -> None:
    """Wait a moment after another process was faster: longer after more attempts, and by chance."""
    longest = min(_SHORTEST_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS)
    await asyncio.sleep(random.uniform(0, longest))
