"""The border to the storage contract: its errors become those of these stores, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import TracebackType

from hsm.fsm.errors import GenericStoreError, InvalidDataError, StoreTimeoutError
from persistence.errors import InvalidRequestError, PersistenceError

__all__ = ["Guard"]


class Guard:
    """Bounds blocks that talk to the database by one time-out, and translates their errors.

    Blocks that have the same time-out end in the order in which they began. So one timer watches the oldest,
    where a timer for each block would cost more than much of what happens in it.
    """

    def __init__(self, timeout: timedelta) -> None:
        """Give each block so long; zero: as long as it likes."""
        self._seconds = timeout.total_seconds()
        self._blocks: dict[_Block, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def block(self, what: str) -> _Block:
        """A context, in a task; `what` it is about, for errors."""
        return _Block(self, what)

    def enter(self, block: _Block) -> None:
        """A block begins."""
        if not self._seconds:
            return
        loop = asyncio.get_running_loop()
        block.end = loop.time() + self._seconds
        self._blocks[block] = None
        if self._timer is None:
            self._timer = loop.call_at(block.end, self._look)

    def leave(self, block: _Block) -> None:
        """A block has ended."""
        self._blocks.pop(block, None)

    def _look(self) -> None:
        """Give up the blocks whose time is over, and come back for the next one."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._blocks:
            block = next(iter(self._blocks))
            if block.end > loop.time():
                self._timer = loop.call_at(block.end, self._look)
                return
            del self._blocks[block]
            block.give_up()


class _Block:
    """A block of one task. Its time-out is told from a cancellation as `asyncio.timeout` tells it."""

    __slots__ = ("_cancelling", "_guard", "_task", "_what", "end", "given_up")

    def __init__(self, guard: Guard, what: str) -> None:
        self._guard = guard
        self._what = what
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.end = 0.0
        self.given_up = False

    def give_up(self) -> None:
        """Cancel what goes on in the block."""
        assert self._task is not None
        self.given_up = True
        self._task.cancel()

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        self._guard.enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.leave(self)
        task, self._task = self._task, None
        if self.given_up:
            assert task is not None
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise StoreTimeoutError(f"{self._what}: no answer in time") from error
        if error is None:
            return
        if isinstance(error, InvalidRequestError):
            raise InvalidDataError(f"{self._what}: {error}") from error
        if isinstance(error, PersistenceError):
            raise GenericStoreError(f"{self._what}: store error: {error}") from error
