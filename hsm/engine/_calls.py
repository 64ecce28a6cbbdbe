"""Calls from threads into an event loop that runs in another one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

__all__ = ["Calls"]

ResultT = TypeVar("ResultT")


class Calls:
    """Lets threads run coroutines in an event loop, until it is closed. Each runs in its caller's context.

    Made in the thread of the loop.
    """

    def __init__(self, closed: Callable[[], Exception]) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._closed = closed
        self._lock = threading.Lock()
        self._open = True
        self._running: set[Future[Any]] = set()

    def call(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """The result of what `work` makes.

        Raises:
            RuntimeError: this is the thread of the loop, which cannot wait for itself.
        """
        if threading.get_ident() == self._thread:
            raise RuntimeError("this runs in the thread of the engine, which cannot wait for itself")
        with self._lock:
            if not self._open:
                raise self._closed()
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
            self._running.add(future)
        try:
            return future.result()
        except CancelledError:
            if self._open:
                raise
            raise self._closed() from None
        finally:
            # Whoever waits no longer, be it for a KeyboardInterrupt, does not want it done either.
            future.cancel()
            with self._lock:
                self._running.discard(future)

    def close(self) -> None:
        """Break off what runs, and let nothing more in."""
        with self._lock:
            self._open = False
            running = list(self._running)
        for future in running:
            future.cancel()
