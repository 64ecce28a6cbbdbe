"""One simulation: processes that come, go and die, clients that ask, a store that fails, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from unittest.mock import patch

import attrs

from hsm.engine import Engine, _leases, _processes, _shards
from hsm.errors import ExecutionClosedError, ExecutionNotFoundError, StaleReferenceError
from persistence.proto.execution_pb2 import MemberRow
from persistence.store import Metadata
from tests.simulation.audit import check_letters, check_rows
from tests.simulation.loop import VirtualLoop, inside
from tests.simulation.models import check_models
from tests.simulation.runs import Finding, rows_of, runs_of
from tests.simulation.stage import Member, Stage
from tests.simulation.world import NAMESPACE

__all__ = ["Result", "simulate"]

_NANOS: Final = 10**9
_TEND_SECONDS: Final = 5
_AUDITED: Final = 0.05
_QUIET_SECONDS: Final = 900.0


@attrs.frozen
class Result:
    """What became of one seed.

    Attributes:
        seed: that everything came from.
        problem: what is wrong; "" if nothing is.
        story: all of it.
    """

    seed: int
    problem: str
    story: Story = attrs.field(repr=False)

    @property
    def counts(self) -> Counter[str]:
        """How much happened."""
        return self.story.counts()

    @property
    def trace(self) -> list[str]:
        return self.story.told()

    @property
    def digest(self) -> str:
        """Of the trace: the same for the same seed."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]


class Story(Stage):
    """Everything that one seed says."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        super().__init__(seed, loop)
        self.audits = random.Random(seed)
        self.database.wrote = self._look_in_between

    async def play(self) -> None:
        """All of it.

        Raises:
            Finding: something is wrong.
        """
        await self.database.data.init(Metadata())
        for _ in range(self.engines):
            self.begin()
        if not self.quiet:
            await self._disturb()
        await self._wait_for_clients()
        await self._settle()
        await self._end()

    async def _disturb(self) -> None:
        chance = self.chance
        for _ in range(chance.choice([0, 1, 2, 3])):
            await asyncio.sleep(chance.uniform(0.2, 6))
            member = chance.choice(self.members)
            what = chance.choice(["kill", "stop", "cut", "leave", "nothing"])
            if not member.process.alive:
                continue
            if what == "kill":
                self.kill(member.process)
            elif what == "stop":
                self.stop(member.process)
            elif what == "cut":
                self.trace(member.process, "cut off")
                member.store.cut = True
                self.loop.call_later(chance.choice([0.5, 4, 10]), self._reconnect, member)
            elif what == "leave" and member.engine is not None and not member.leave.is_set():
                self.trace(member.process, "is told to leave")
                member.leave.set()
                self.begin()
            self._check_rows(resting=False)

    def _reconnect(self, member: Member) -> None:
        self.trace(member.process, "connected again")
        member.store.cut = False

    async def _wait_for_clients(self) -> None:
        deadline = self.loop.time() + _QUIET_SECONDS
        while self.coming or not all(member.idle for member in self.members if member.process.alive):
            self._in_time(deadline, "the clients come to no end")
            for member in self.members:
                if member.main is not None and member.main.done():
                    member.main.result()
            await asyncio.sleep(1)

    async def _settle(self) -> None:
        """No more faults: everything has to come to its end."""
        self.faults.over = True
        self.trace(None, "no more faults")
        for member in self.members:
            member.store.cut = False
            self.go_on(member.process)
        await self._wait_for_clients()
        deadline = self.loop.time() + _QUIET_SECONDS
        engine = self._engine()
        await asyncio.sleep(1)
        self.world.paused.clear()
        await self._resume_all(engine)
        self.world.healed = True
        while left := await self._left(engine):
            self._in_time(deadline, f"never done: {left}")
            await asyncio.sleep(2)

    def _engine(self) -> Engine:
        return next(member.engine for member in self.living() if member.engine is not None)

    async def _resume_all(self, engine: Engine) -> None:
        with inside(self.living()[0].process):
            infos = [info async for info in engine.list(namespace=NAMESPACE)]
            for info in infos:
                if info.paused:
                    # A termination that was under way may have been faster.
                    with contextlib.suppress(ExecutionClosedError, ExecutionNotFoundError):
                        await engine.resume(info.key)

    async def _left(self, engine: Engine) -> list[str]:
        """What is still to be done; dead letters are replayed."""
        rows = rows_of(self.database.data)
        left = [key for _, key, _ in rows if key[:2] in {"t/", "o/", "i/", "q/", "z/", "p/"}]
        if any(key.startswith("d/") for _, key, _ in rows):
            check_letters(rows)
            letters = [letter async for letter in engine.dead_letters()]
            for letter in letters:
                self.records.replayed.add(letter.task_id)
                try:
                    await engine.replay(letter)
                except StaleReferenceError:
                    continue
            left.append("dead letters")
        if self.retention:
            left += [f"{run} is not deleted" for run in runs_of(rows).values() if run.closed]
        return left

    async def _end(self) -> None:
        self._check_rows(resting=True)
        await check_models(
            self._engine(),
            self.database.data,
            self.records,
            self.world,
            self.database.archive,
            self.retention,
        )
        for member in self.members:
            member.leave.set()
        deadline = self.loop.time() + _QUIET_SECONDS
        while any(
            member.process.alive and member.main is not None and not member.main.done()
            for member in self.members
        ):
            self._in_time(deadline, "processes do not end")
            await asyncio.sleep(1)
        for member in self.members:
            if member.process.alive and member.main is not None:
                member.main.result()
        self.over = True

    def _look_in_between(self) -> None:
        if self.audits.random() < _AUDITED and not self.world.wrong:
            try:
                self._check_states(resting=False)
            except Finding as finding:
                self.world.wrong.append(str(finding))

    def _check_rows(self, *, resting: bool) -> None:
        self._check_states(resting=resting)
        if self.world.wrong:
            raise Finding(self.world.wrong[0])

    def _check_states(self, *, resting: bool) -> None:
        # A row that was elsewhere when its task became pointless goes back, and is dropped when it comes up.
        excused = self.records.replayed if resting else self.records.replayed | self.database.displaced
        check_rows(self.database.data, excused, resting=resting)

    def _in_time(self, deadline: float, what: str) -> None:
        if self.loop.time() > deadline:
            raise Finding(what)

    # After it

    async def clear_away(self) -> None:
        """End everything that is left of all processes, so that nothing of it reaches the next simulation."""
        self.over = True
        self.faults.over = True
        for member in self.members:
            member.store.cut = True
            self.loop.resume(member.process)
        for _ in range(20):
            tasks = [task for member in self.members for task in list(member.process.tasks)]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=30)


@contextmanager
def _simulated_world(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Leases go by the time of the loop, and nobody asks the real machine for chance, or which processes it has."""
    state = random.getstate()
    random.seed(seed)
    with (
        patch.object(_leases, "_now", loop.time),
        patch.object(_shards, "_TEND_NANOS", _TEND_SECONDS * _NANOS),
        patch.object(_processes.Presence, "row", lambda self: MemberRow(number=self._number)),
    ):
        try:
            yield
        finally:
            random.setstate(state)


def simulate(seed: int, *, log: bool = False) -> Result:
    """Play one seed."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    problem = ""
    try:
        with _simulated_world(loop, seed):
            story = Story(seed, loop)
            try:
                loop.run_until_complete(story.play())
            except Finding as finding:
                problem = str(finding)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                problem = "".join(traceback.format_exception(error))
            story.trace(None, "the end:", problem or "all is well")
            ended = list(story.events)
            loop.run_until_complete(story.clear_away())
            loop.run_until_complete(loop.shutdown_asyncgens())
            story.events = ended
        return Result(seed, problem, story)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
