"""Turns: who writes a machine next. In a process, who asked first; among processes, who is faster."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from types import TracebackType
from typing import Final, TypeAlias

__all__ = ["Turns", "pause_after"]

_SHORTEST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.1

_Key: TypeAlias = tuple[str, str]


class Turns:
    """One writer at a time for each machine. Without it, steady events would starve all others."""

    def __init__(self) -> None:
        # A machine is in here while somebody has the turn; the others wait.
        self._queues: dict[_Key, deque[asyncio.Future[None]]] = {}

    def turn(self, partition: str, id_: str) -> _Turn:
        """An asynchronous context whose block runs when all that asked before are done."""
        return _Turn(self._queues, (partition, id_))


class _Turn:
    """One turn. A class, and no generator: most turns have nothing to wait for, and this is cheaper."""

    __slots__ = ("_key", "_queues")

    def __init__(self, queues: dict[_Key, deque[asyncio.Future[None]]], key: _Key) -> None:
        self._queues = queues
        self._key = key

    async def __aenter__(self) -> None:
        queue = self._queues.get(self._key)
        if queue is None:
            self._queues[self._key] = deque()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._pass_on()  # it had come at the same moment
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        queue = self._queues[self._key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._queues[self._key]


async def pause_after(attempt: int) -> None:
    """Wait a moment after another process was faster: longer after more attempts, and by chance."""
    longest = min(_SHORTEST_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS)
    await asyncio.sleep(random.uniform(0, longest))
