"""A thread that runs one piece of work after the other for the event loop, and the watch over it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Final, TypeAlias, TypeVar, TypeVarTuple

__all__ = ["Chore", "Watchdog", "Worker"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Chore: TypeAlias = Callable[[], Callable[[], None] | None]
"""Asked in the thread: something to do that nobody waits for, or None."""


def _no_chore() -> None:
    return None


def _nothing() -> None:
    pass


class Worker:
    """A thread of one event loop's; work is done in the order in which it is handed over.

    A `Watchdog` sees to it that a busy event loop does not starve the thread.

    Attributes:
        started: pieces of work handed over so far.
        finished: pieces of work of which the event loop has learnt the end.
    """

    def __init__(self, name: str) -> None:
        self.started: int = 0
        self.finished: int = 0
        self._loop = asyncio.get_running_loop()
        self._watchdog = Watchdog(self)
        self._queue: SimpleQueue[tuple[Callable[[], Callable[[], None]], Chore] | None] = SimpleQueue()
        # A daemon, so that a program which forgets to close its store can still end.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether the event loop has learnt the end of everything that it handed over."""
        return self.finished == self.started

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Do some work in the thread; the future is done when the event loop learns of the end."""
        future: asyncio.Future[T] = self._loop.create_future()

        def finish(outcome: T | BaseException) -> None:
            if future.done():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.call(work, finish)
        return future

    def call(
        self, work: Callable[[], T], finish: Callable[[T | BaseException], None], *, chore: Chore = _no_chore
    ) -> None:
        """Do some work in the thread, then call `finish` in the event loop's with the result or the error.

        `chore` is asked behind the work what else there is to do. That is done at once, while the event loop
        attends to the news, and belongs to the work: until it is done, too, the thread is not idle. It must
        not raise.
        """

        def job() -> Callable[[], None]:
            try:
                return partial(finish, work())
            except BaseException as error:  # noqa: BLE001  somebody waits for the end, whatever it is
                return partial(finish, error)

        self.started += 1
        self._queue.put((job, chore))
        self._watchdog.arm()

    async def stop(self) -> None:
        """End the thread after the work that was handed over."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            job, chore = piece
            news = job()
            do_chore = chore()
            if do_chore is None:
                self._tell(self._learn, news)
            else:
                self._tell(news)
                # Before the event loop, which is busy with the news, has got the interpreter lock.
                do_chore()
                self._tell(self._learn, _nothing)
            del piece, job, chore, news, do_chore  # not to keep a batch alive until the next one comes

    def _tell(self, callback: Callable[[*Ts], None], *arguments: *Ts) -> None:
        # The loop is closed if the program ended without closing the store: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _learn(self, news: Callable[[], None]) -> None:
        self.finished += 1
        news()


_LATE_SECONDS: Final = 0.005
_NAP_SECONDS: Final = 0.000_05
_PAUSE_SECONDS: Final = 0.000_2
_PATIENT_NAPS: Final = 100


class Watchdog:
    """Gives the interpreter lock away while a worker is late, so that a busy event loop cannot starve it.

    Every call into SQLite gives the lock up, and a loop that is never idle, but whose callbacks are shorter
    than the switch interval, never gives it back: the worker would wait for ever. A nap in the loop's
    thread, now and then, lets it go on. An idle loop needs none of this, so naps begin only when work is
    late; they get rarer when they do not help, because then it is the disk that is slow.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._armed = False
        self._seen = 0
        self._naps = 0
        self._pause_seconds = _PAUSE_SECONDS

    def arm(self) -> None:
        """Begin to watch; called when work is handed over, and nearly free when it watches already."""
        if not self._armed:
            self._armed = True
            self._look_again()

    def _look_again(self) -> None:
        self._seen = self._worker.finished
        self._naps = 0
        self._pause_seconds = _PAUSE_SECONDS
        self._loop.call_later(_LATE_SECONDS, self._look)

    def _look(self) -> None:
        worker = self._worker
        if worker.finished == worker.started:
            self._armed = False
        elif worker.finished != self._seen:
            self._look_again()
        else:
            time.sleep(_NAP_SECONDS)
            self._naps += 1
            if self._naps > _PATIENT_NAPS:
                self._pause_seconds = min(2 * self._pause_seconds, _LATE_SECONDS)
            self._loop.call_later(self._pause_seconds, self._look)
