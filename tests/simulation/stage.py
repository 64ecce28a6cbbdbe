"""The stage: the options of one seed, its trace, and processes that come, go and die."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from datetime import timedelta
from typing import Any, Final

import attrs

from hsm.engine import Backoff, Breaker, Engine, EngineOptions, Rate
from hsm.engine.clock import nanos_of
from hsm.errors import HSMError
from persistence.errors import PersistenceError
from tests.simulation.client import Client
from tests.simulation.faults import Faults
from tests.simulation.loop import Process, VirtualClock, VirtualLoop, inside
from tests.simulation.meter import Meter
from tests.simulation.records import Outcome, Records
from tests.simulation.runs import rows_of, runs_of
from tests.simulation.store import Database, SimulatedStore
from tests.simulation.world import World

__all__ = ["Member", "Stage"]

_NANOS: Final = 10**9
_SECOND: Final = timedelta(seconds=1)
_MOST_KILLS: Final = 6
_COUNTED: Final = ("refresh", "pause", "pause machine", "resume", "terminate", "delete", "delete by force")


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


class Stage:
    """What one seed begins with, and the processes that come and go."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.chance = chance = random.Random(seed)
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.events: list[tuple[Any, ...]] = []
        self.records = Records()
        self.options = self._options()
        self.retention = 0 if self.options.retention is None else nanos_of(self.options.retention)
        self.world = World(self.clock, random.Random(chance.random()), self.options.concurrency, self.trace)
        self.database = Database(
            loop, self.clock.time_ns, watched=chance.random() < 0.6, page_rows=chance.choice([2, 20, 500])
        )
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
        if chance.random() < 0.3:
            # A name that children are given, too.
            self.ids.append("kid")
        self.engines = chance.choice([1, 2, 2, 3])
        self.measures = chance.random() < 0.5
        self.requests = chance.choice([4, 8, 12])
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
            rate=chance.choice([None, None, Rate(2), Rate(5, 3)]),
            queue_buffer=chance.choice([1, 2, 100]),
            timer_window=chance.choice([1, 2, 100]),
            poll_interval=chance.choice([2, 4]) * _SECOND,
            lease_seconds=lease,
            cached_executions=chance.choice([1, 10]),
            loaded_nodes=chance.choice([1, 3, 100]),
            delete_rows=chance.choice([1, 100]),
            repair_shards=chance.random() < 0.2,
            retention=chance.choice([None, None, 8 * _SECOND]),
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
            if record.outcome is Outcome.DONE and record.kind in _COUNTED:
                counts[f"done: {record.kind}"] += 1
        runs = [*runs_of(rows_of(self.database.data)).values(), *self.database.archive.runs.values()]
        counts["executions"] = len(runs)
        counts["executions started by another"] = sum(run.row.HasField("parent") for run in runs)
        counts["executions that were deleted"] = len(self.database.archive.runs)
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
            options = self._measured(options, member.process)
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

    def _measured(self, options: EngineOptions, process: Process) -> EngineOptions:
        """The options of another engine of a process."""
        if options.breaker is None or not self.measures:
            return options
        meter = Meter(process, self.clock.time_ns, options.rate, options.breaker, self.world.wrong.append)
        self.world.meters[process] = meter
        return attrs.evolve(options, telemetry=meter)

    def living(self) -> list[Member]:
        return [member for member in self.members if member.process.alive and not member.leave.is_set()]


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
