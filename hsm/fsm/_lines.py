"""Lines: machines that have something to do, each with one worker at a time, and who waits for an outcome."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeAlias

import attrs

from hsm.errors import BusyError
from persistence.proto.statemachine_pb2 import EventOutcome

__all__ = ["Lines", "Machine"]

Machine: TypeAlias = tuple[str, str]
"""Name of the configuration, and id."""


@attrs.define
class _Line:
    again: bool = False
    failures: int = 0


class Lines:
    """Which machines wait for a worker. One that is being worked on waits until its worker is done."""

    def __init__(self) -> None:
        self._lines: dict[Machine, _Line] = {}
        self._ready: deque[Machine] = deque()
        self._wakers: deque[asyncio.Future[None]] = deque()
        self._waiters: dict[Machine, dict[str, set[asyncio.Future[EventOutcome]]]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._abandoned = False

    def __len__(self) -> int:
        return len(self._lines)

    def mark(self, machine: Machine) -> None:
        """A machine has something to do; nothing happens after `abandon`."""
        if self._abandoned:
            return
        line = self._lines.get(machine)
        if line is not None:
            line.again = True
            return
        self._lines[machine] = _Line()
        self._idle.clear()
        self._make_ready(machine)

    async def next(self) -> Machine:
        """The machine that has waited longest; its worker says `done` or `failed` afterwards."""
        while not self._ready:
            waker = asyncio.get_running_loop().create_future()
            self._wakers.append(waker)
            await waker
        machine = self._ready.popleft()
        self._lines[machine].again = False
        return machine

    def done(self, machine: Machine) -> None:
        """The worker has done what there was; the machine waits again if there is more."""
        line = self._lines[machine]
        line.failures = 0
        if line.again:
            self._make_ready(machine)
            return
        del self._lines[machine]
        if not self._lines:
            self._idle.set()

    def failed(self, machine: Machine) -> int:
        """The worker could not; how often so far. `again` puts the machine back."""
        line = self._lines[machine]
        line.failures += 1
        return line.failures

    def again(self, machine: Machine) -> None:
        """The machine waits for a worker again, after a failure."""
        if machine in self._lines:
            self._make_ready(machine)

    async def idle(self) -> None:
        """Return when no machine has anything to do."""
        await self._idle.wait()

    def abandon(self) -> int:
        """Forget everything; whoever waits for an outcome, or comes later, is told so.

        The number of machines that had something to do.
        """
        left = len(self._lines)
        self._abandoned = True
        self._lines.clear()
        self._ready.clear()
        self._idle.set()
        for events in self._waiters.values():
            for futures in events.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(_closed())
        return left

    @contextmanager
    def waiting(self, machine: Machine, event_id: str) -> Generator[asyncio.Future[EventOutcome]]:
        """Wait for the outcome of an event, inside the block."""
        future: asyncio.Future[EventOutcome] = asyncio.get_running_loop().create_future()
        if self._abandoned:
            future.set_exception(_closed())
        events = self._waiters.setdefault(machine, {})
        futures = events.setdefault(event_id, set())
        futures.add(future)
        try:
            yield future
        finally:
            if future.done() and not future.cancelled():
                future.exception()  # seen, whether or not it was awaited
            futures.discard(future)
            if not futures and events.get(event_id) is futures:
                del events[event_id]
            if not events and self._waiters.get(machine) is events:
                del self._waiters[machine]

    def awaited(self, machine: Machine) -> list[str]:
        """Ids of the events whose outcome somebody waits for."""
        events = self._waiters.get(machine, {})
        return [id_ for id_, futures in events.items() if any(not future.done() for future in futures)]

    def settle(self, machine: Machine, event_id: str, outcome: EventOutcome) -> None:
        """An event has an outcome: wake up who waits for it."""
        for future in self._waiters.get(machine, {}).get(event_id, ()):
            if not future.done():
                future.set_result(outcome)

    def _make_ready(self, machine: Machine) -> None:
        self._ready.append(machine)
        while self._wakers:
            waker = self._wakers.popleft()
            if not waker.done():
                waker.set_result(None)
                break


def _closed() -> BusyError:
    return BusyError("closed before the event had an outcome; it is pending")
