"""One simulation: processes that come, go and die, clients that ask, a store that fails, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import random
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from unittest.mock import patch

import attrs

from hsm.engine import Backoff, Breaker, Engine, EngineOptions, _leases, _processes
from hsm.errors import ExecutionClosedError, ExecutionNotFoundError, HSMError, StaleReferenceError
from persistence.errors import PersistenceError
from persistence.proto.execution_pb2 import MemberRow
from persistence.store import Metadata
from tests.simulation.audit import Finding, check_models, check_rows, rows_of
from tests.simulation.client import Client
from tests.simulation.faults import Faults
from tests.simulation.loop import Process, VirtualClock, VirtualLoop, inside
from tests.simulation.records import Records
from tests.simulation.store import Database, SimulatedStore
from tests.simulation.world import NAMESPACE, World

__all__ = ["Result", "simulate"]

_NANOS: Final = 10**9
_SECOND: Final = timedelta(seconds=1)
_AUDITED: Final = 0.05
_MOST_KILLS: Final = 6
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


class Member:
    """A process with an engine and its clients."""

    def __init__(self, number: int, process: Process, store: SimulatedStore) -> None:
        self.number = number
        self.process = process
        self.store = store
        self.engine: Engine | None = None
        self.main: asyncio.Task[None] | None = None
        self.leave = asyncio.Event()
        self.idle = False


class Story:
    """Everything that one seed says."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.chance = chance = random.Random(seed)
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.events: list[tuple[Any, ...]] = []
        self.records = Records()
        self.options = self._options()
        self.world = World(self.clock, random.Random(chance.random()), self.options.concurrency, self.trace)
        self.database = Database(
            loop, self.clock.time_ns, watched=chance.random() < 0.6, page_rows=chance.choice([2, 20, 500])
        )
        self.database.wrote = self._look_in_between
        self.audits = random.Random(seed)
        self.quiet = chance.random() < 0.15
        alone = chance.random() < 0.3
        self.faults = Faults(
            random.Random(chance.random()),
            0.0 if self.quiet or alone else chance.choice([0.005, 0.02, 0.06]),
            chance.randrange(1, 500) if alone else 0,
            hard=chance.random() < 0.5,
        )
        self.members: list[Member] = []
        self.numbers = 0
        self.coming = 0
        self.killed = 0
        self.ids = ["exec-a", "exec-b", "exec-c"][: chance.choice([1, 2, 3])]
        self.engines = chance.choice([1, 2, 2, 3])
        self.requests = chance.choice([4, 6, 8])
        self.over = False

    def _options(self) -> EngineOptions:
        chance = self.chance
        lease = chance.choice([3, 6])
        return EngineOptions(
            clock=self.clock,
            shard_count=chance.choice([1, 2]),
            backoff=Backoff(_SECOND, 4 * _SECOND),
            max_attempts=chance.choice([3, 4]),
            task_timeout=8 * _SECOND,
            concurrency=chance.choice([1, 3]),
            breaker=Breaker(failures=chance.choice([1, 3]), open_time=3 * _SECOND),
            queue_buffer=chance.choice([1, 2, 100]),
            timer_window=chance.choice([1, 2, 100]),
            poll_interval=chance.choice([2, 4]) * _SECOND,
            lease_seconds=lease,
            cached_executions=chance.choice([1, 10]),
            loaded_nodes=chance.choice([1, 3, 100]),
            delete_rows=chance.choice([1, 100]),
            repair_shards=chance.random() < 0.2,
            drain_timeout=5 * _SECOND,
        )

    # The trace

    def trace(self, process: Process | None, *what: Any) -> None:
        """Note that something happened; it is put into words if somebody asks."""
        self.events.append((self.loop.nanos, process, what))

    def told(self) -> list[str]:
        return [
            f"{nanos / _NANOS:12.6f} {process!r:8} {_words(what)}" for nanos, process, what in self.events
        ]

    def counts(self) -> Counter[str]:
        """How much happened, by kind."""
        counts: Counter[str] = Counter()
        for _, _, what in self.events:
            if what[0] == "fault":
                counts[f"fault: {what[2]}"] += 1
            elif what[0] in {"killed", "stopped", "cut off", "is told to leave"}:
                counts[f"process {what[0]}"] += 1
            elif what[0] == "wrote":
                counts["commits"] += 1
        for record in self.records.all:
            counts[f"request {record.outcome.value}"] += 1
        counts["runs of tasks"] = self.world.attempts.total()
        counts["calls of the store"] = self.faults.calls
        counts["processes"] = self.numbers
        counts["virtual seconds"] = round(self.loop.time())
        return counts

    # Processes

    def kill(self, process: Process) -> None:
        """Like SIGKILL: nothing of it runs any more, and a new process takes its place after a while."""
        if self.over or not process.alive:
            return
        self.trace(process, "killed")
        process.kill()
        self.world.paused.pop(process, None)
        self.coming += 1
        self.killed += 1
        if self.killed >= _MOST_KILLS:
            # Somebody has to come to an end.
            self.faults.hard = False
        self.loop.call_later(self.chance.uniform(0, 5), self._begin_again, context=_no_process())

    def stop(self, process: Process) -> None:
        """Like SIGSTOP, and SIGCONT some time later: perhaps after its lease has run out."""
        if self.over or process.stopped:
            return
        self.trace(process, "stopped")
        process.stop()
        pause = self.chance.choice([1, 5, 12]) * self.chance.uniform(0.5, 1)
        self.slowed(process, round(pause * _NANOS))
        self.loop.call_later(pause, self.go_on, process, context=_no_process())

    def slowed(self, process: Process, nanos: int) -> None:
        """An answer to a process is on its way for so long: what it says may be old by then."""
        process.slow_until = max(process.slow_until, self.clock.time_ns() + nanos)
        self.world.paused.pop(process, None)

    def go_on(self, process: Process) -> None:
        if process.alive and process.stopped:
            self.trace(process, "goes on")
            self.loop.resume(process)

    def _begin_again(self) -> None:
        self.coming -= 1
        if not self.over:
            self.begin()

    def begin(self) -> None:
        """Another process."""
        self.numbers += 1
        process = Process(f"p{self.numbers}")
        store = SimulatedStore(self.database, process, self.faults, self, self.trace)
        member = Member(self.numbers, process, store)
        with inside(process):
            member.main = self.loop.create_task(self._main(member))
        self.members.append(member)

    async def _main(self, member: Member) -> None:
        seed = self.chance.random()
        options = attrs.evolve(self.options, random=random.Random(seed))
        while not member.leave.is_set():
            try:
                async with Engine(self.world.registry, member.store, options) as engine:
                    self.trace(member.process, "is there")
                    member.engine = engine
                    try:
                        async with asyncio.TaskGroup() as group:
                            for number in range(2):
                                client = Client(
                                    10 * member.number + number,
                                    engine,
                                    member.process,
                                    self.world,
                                    self.records,
                                    self.ids,
                                    self.chance,
                                    self.trace,
                                )
                                group.create_task(client.work(self.requests))
                        member.idle = True
                        await member.leave.wait()
                    finally:
                        member.engine = None
                self.trace(member.process, "has left")
            except (HSMError, PersistenceError) as error:
                # As a service manager would.
                self.trace(member.process, "cannot begin", repr(error))
                await asyncio.sleep(1)

    def living(self) -> list[Member]:
        return [member for member in self.members if member.process.alive and not member.leave.is_set()]

    # What happens

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
            await self._check_rows(resting=False)

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
            letters = [letter async for letter in engine.dead_letters()]
            for letter in letters:
                self.records.replayed.add(letter.task_id)
                try:
                    await engine.replay(letter)
                except StaleReferenceError:
                    continue
            left.append("dead letters")
        return left

    async def _end(self) -> None:
        await self._check_rows(resting=True)
        await check_models(self._engine(), self.database.data, self.records, self.world)
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
                check_rows(self.database.data, self.records.replayed, resting=False)
            except Finding as finding:
                self.world.wrong.append(str(finding))

    async def _check_rows(self, *, resting: bool) -> None:
        check_rows(self.database.data, self.records.replayed, resting=resting)
        if self.world.wrong:
            raise Finding(self.world.wrong[0])

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


def _words(what: tuple[Any, ...]) -> str:
    words: list[str] = []
    for word in what:
        if isinstance(word, list | tuple):
            words.append("; ".join(f"{_verb(each)} {each.key}" for each in word))
        else:
            words.append(str(word))
    return " ".join(words)


def _verb(operation: Any) -> str:
    name = type(operation).__name__.removesuffix("Request").lower()
    return f"{name}*" if getattr(operation, "etag", None) else name


def _no_process() -> contextvars.Context:
    """For what the simulation does itself."""
    return contextvars.Context()


@contextmanager
def _simulated_world(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Leases go by the time of the loop, and nobody asks the real machine for chance, or which processes it has."""
    state = random.getstate()
    random.seed(seed)
    with (
        patch.object(_leases, "_now", loop.time),
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
