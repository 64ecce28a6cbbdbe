"""Watching: an iterator that a store tells of changes, and that a slow reader cannot make grow for ever."""

from __future__ import annotations

import asyncio
from typing import Final, Self

from persistence.store import Change, ChangeKind

__all__ = ["Watch"]

_MAX_PENDING: Final = 10_000
_RESYNC: Final = Change(ChangeKind.RESYNC)


class Watch:
    """The changes of keys with a prefix, as an async iterator that ends when its store is closed.

    Changes of one key that come faster than they are read are told once. If too many keys wait, they are
    forgotten and a RESYNC is told instead: the reader then looks for itself.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._pending: dict[str, None] = {}
        self._resync = False
        self._ended = False
        self._wake: asyncio.Future[None] | None = None

    def notify(self, key: str) -> None:
        """Tell of a key that may have changed; of no interest if it has not the prefix."""
        if not key.startswith(self._prefix):
            return
        if len(self._pending) < _MAX_PENDING:
            self._pending[key] = None
            self._awake()
        else:
            self.resync()

    def resync(self) -> None:
        """Tell that changes may have been missed."""
        self._pending.clear()
        self._resync = True
        self._awake()

    def end(self) -> None:
        """Tell what is left to tell, and then that nothing comes any more."""
        self._ended = True
        self._awake()

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while True:
            if self._resync:
                self._resync = False
                return _RESYNC
            if self._pending:
                key = next(iter(self._pending))
                del self._pending[key]
                return Change(ChangeKind.KEY, key)
            if self._ended:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
