"""Entities for tests of the goal-state engine: they note what is done to them, and fail on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import attrs

from hsm.goalstate import Action, ActionList, Options, Run, Standing
from hsm.testing import FakeClock

SECOND = timedelta(seconds=1)


@attrs.define
class Light:
    """On or off. Its actions are what the test says; they are named after what they do to the light."""

    id: str = "light"
    state: str = "off"
    goal: str = "on"
    todo: Sequence[Action[Light]] | None = None
    timeout: timedelta | None = None
    log: list[str] = attrs.field(factory=list)
    done: int = 0

    def read(self) -> Standing[str, str]:
        return Standing(self.state, self.goal)

    def action_list(self, state: str, goal: str, /) -> ActionList[Light]:
        if self.todo is not None:
            return ActionList(self.todo, self.timeout, self._note_done)
        return ActionList([] if state == goal else [Action("switch", switch)], self.timeout, self._note_done)

    def _note_done(self) -> None:
        self.done += 1


async def switch(light: Light, run: Run) -> None:
    light.log.append("switch")
    light.state = light.goal


def noting(text: str) -> Action[Light]:
    """An action that notes itself, with the time."""

    async def note(light: Light, run: Run) -> None:
        light.log.append(text)

    return Action(text, note)


def failing(
    text: str, times: int, error: Callable[[], BaseException] = lambda: OSError("no power")
) -> Action[Light]:
    """An action that notes itself, and fails a number of times before it succeeds."""
    left = times

    async def fail(light: Light, run: Run) -> None:
        nonlocal left
        light.log.append(text)
        if left:
            left -= 1
            raise error()

    return Action(text, fail)


class Blocked:
    """An action that runs until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.open = asyncio.Event()

    async def run(self, light: Light, run: Run) -> None:
        self.begun += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def action(self, timeout: timedelta | None = None) -> Action[Light]:
        return Action("blocked", self.run, timeout)


def timed(clock: FakeClock, times: list[float], execute: Callable[[], Awaitable[None]]) -> Action[Light]:
    """An action that notes at which second it runs."""
    start = clock.now()

    async def note(light: Light, run: Run) -> None:
        times.append((clock.now() - start) / SECOND)
        await execute()

    return Action("timed", note)


def steady(clock: FakeClock, **changes: Any) -> Options:
    """Options for tests: a fake clock, and no chance."""
    return attrs.evolve(Options(clock=clock, jitter=0.0), **changes)
