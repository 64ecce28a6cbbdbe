"""One event loop for several simulated processes: its time is virtual, and a process of it can be stopped.

Time stands still while anything can run, and jumps to the next deadline when nothing can. Whatever a process has
started, at any depth, belongs to it by its context; a process that is stopped runs none of it until it goes on,
and one that is killed runs nothing of it again. Who runs next depends on nothing but the program and its seed.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Self, TypeVarTuple

from hsm.engine.clock import TimerHandle

__all__ = ["Process", "VirtualClock", "VirtualLoop", "current_process", "inside"]

Ts = TypeVarTuple("Ts")

_NANOS: Final = 10**9
_START: Final = 1_900_000_000 * _NANOS


class Process:
    """Something that can be stopped and killed.

    Attributes:
        name: for the trace.
        alive: whether it was not killed.
        slow_until: when the last answer arrives that takes long, in nanoseconds since 1970.
        stops: how often it was stopped.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.slow_until = 0
        self.stopped = False
        self.stops = 0
        self.held: list[asyncio.Handle] = []
        self.tasks: dict[SimulatedTask, None] = {}

    def __repr__(self) -> str:
        return self.name

    def stop(self) -> None:
        """Run nothing of it from now on, as after SIGSTOP."""
        self.stopped = True
        self.stops += 1

    def kill(self) -> None:
        """Run nothing of it ever again, not even what tidies up."""
        self.alive = False
        self.stopped = True


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("_process", default=None)


def current_process() -> Process | None:
    """The process that runs now; None if it is the simulation itself."""
    return _process.get()


class SimulatedTask(asyncio.Task[Any]):
    """A task whose hash is its number: sets of them have the same order every time."""

    _numbers = itertools.count()

    def __init__(self, coro: Any, **options: Any) -> None:
        self._number = next(self._numbers)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoSelector(selectors.BaseSelector):
    """There is nothing outside: to wait is to let time pass."""

    def __init__(self) -> None:
        self._map: dict[int, selectors.SelectorKey] = {}
        self.now = 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(
            fileobj, fileobj if isinstance(fileobj, int) else fileobj.fileno(), events, data
        )
        self._map[key.fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._map.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        if timeout > 0:
            self.now += max(1, math.ceil(timeout * _NANOS))
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._map


class VirtualLoop(asyncio.SelectorEventLoop):
    """The event loop. `time` is the seconds that have passed in it."""

    def __init__(self) -> None:
        self._virtual = _NoSelector()
        super().__init__(self._virtual)
        self.set_task_factory(self._new_task)  # type: ignore[arg-type]  # the protocol wants a generic callable

    @property
    def nanos(self) -> int:
        """The nanoseconds that have passed."""
        return self._virtual.now

    def time(self) -> float:
        return self._virtual.now / _NANOS

    def reach(self, nanos: int) -> None:
        """Let it be a time that is due: floats fall short of it by a trifle."""
        self._virtual.now = max(self._virtual.now, nanos)

    @staticmethod
    def _new_task(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> SimulatedTask:
        context: contextvars.Context | None = options.get("context")
        process = _process.get() if context is None else context.get(_process)
        task = SimulatedTask(coro, loop=loop, **options)
        if process is not None:
            process.tasks[task] = None
            task.add_done_callback(process.tasks.pop)
        return task

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        process = _process.get() if context is None else context.get(_process)
        if process is not None and process.stopped:
            handle = asyncio.Handle(callback, args, self, context)
            process.held.append(handle)
            return handle
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        # There are no threads; asynchronous generators that nobody finishes come here.
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        process = _process.get() if context is None else context.get(_process)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        own: list[asyncio.TimerHandle] = []
        handle = super().call_at(when, self._fire, process, own, callback, args, context=context)
        own.append(handle)
        return handle

    def _fire(
        self,
        process: Process,
        own: list[asyncio.TimerHandle],
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        if not process.stopped:
            callback(*args)
            return

        def fire_late() -> None:
            if not own[0].cancelled():
                callback(*args)

        process.held.append(asyncio.Handle(fire_late, (), self))

    def resume(self, process: Process) -> None:
        """Let a process go on with everything that has come up meanwhile."""
        process.stopped = False
        held, process.held = process.held, []
        for handle in held:
            if not handle.cancelled():
                super().call_soon(handle._run)


class VirtualClock:
    """The engine's clock: the time of the loop, from a day in 2030 on."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def time_ns(self) -> int:
        """See `Clock`."""
        return _START + self._loop.nanos

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""
        due = max(when_ns - _START, self._loop.nanos)

        def fire() -> None:
            self._loop.reach(due)
            callback()

        return self._loop.call_at(due / _NANOS, fire)

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""
        return self.call_at(self.time_ns() + delay_ns, callback)


class inside:  # noqa: N801 - a context manager that reads as a preposition
    """What is started in the block belongs to a process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._token: contextvars.Token[Process | None] | None = None

    def __enter__(self) -> Self:
        self._token = _process.set(self._process)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _process.reset(self._token)
