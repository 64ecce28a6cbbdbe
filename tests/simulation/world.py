"""What is outside the engines: what tasks do, what was seen of them, and what nobody should ever see."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from hsm import BusyError, DestinationDownError, Environment, ExecutionKey, Node, Ref, Registry, TerminalError
from hsm.engine import Engine
from hsm.engine.clock import from_nanos
from hsm.errors import DuplicateRequestError, ExecutionAlreadyStartedError, StaleReferenceError
from hsm.executor import AccessType
from hsm.machine import MachineType
from hsm.task import Singleton
from tests.simulation.ledger import (
    CHILD,
    ROOT,
    TASKS,
    Alarm,
    Call,
    ErrandSerializer,
    First,
    Fragile,
    Ledger,
    LedgerDefinition,
    Newest,
    Ring,
    Soon,
    append,
    finish,
)
from tests.simulation.loop import Process, VirtualClock, current_process
from tests.simulation.meter import Meter

__all__ = ["MODES", "NAMESPACE", "RING_MODES", "World"]

NAMESPACE: Final = "simulation"
SECOND: Final = timedelta(seconds=1)
_UNDER_WAY: Final = timedelta(seconds=0.1)
RING_MODES: Final = ("ok", "ok", "flaky", "fatal", "silent", "spawn")
MODES: Final = (
    "ok",
    "ok",
    "ok",
    "flaky",
    "fatal",
    "busy",
    "down",
    "noted",
    "hang",
    "silent",
    "spawn",
    "block",
    "double",
    "slow",
    "other",
    "start",
    "read",
    "failing",
)


class World:
    """The registry, its executors, and what they have seen.

    Attributes:
        concurrency: how many tasks of one destination a process may run at once.
        attempts: runs of each task.
        healed: whether no task fails any more.
        paused: for each process, the runs that it has paused and nobody has resumed since, and since when.
        meters: of the engines that are measured, by their processes.
        wrong: what was seen and should not be.
    """

    def __init__(
        self, clock: VirtualClock, chance: random.Random, concurrency: int, trace: Callable[..., None]
    ) -> None:
        self.clock = clock
        self._trace = trace
        self.chance = chance
        self.concurrency = concurrency
        self.attempts: Counter[str] = Counter()
        self.healed = False
        self.paused: dict[Process, dict[str, datetime]] = {}
        self.meters: dict[Process | None, Meter] = {}
        self.wrong: list[str] = []
        self._running: Counter[tuple[Process | None, str]] = Counter()
        self.registry = Registry()
        self.registry.register_machine(LedgerDefinition(ROOT, "root"))
        self.registry.register_machine(LedgerDefinition(CHILD, "child"))
        for task in TASKS.values():
            self.registry.register_task_serializer(task.type.id, ErrandSerializer(task))
            singleton = {Newest: Singleton.REPLACE, First: Singleton.IGNORE}.get(task)
            self.registry.register_task(task, singleton=singleton)
            if task is Ring:
                self.registry.register_timer_executor(Ring, self._ring)
            else:
                self.registry.register_executor(task, self._run)

    def new_task(self, name: str, *, finishes: bool = False) -> Any:
        """A task of any class, with any mode; or one that ends its execution."""
        chance = self.chance
        class_: type[Any]
        if finishes:
            class_, mode = chance.choice((Soon, Call, Alarm)), "finish"
        else:
            class_ = chance.choice((Soon, Soon, First, Call, Call, Newest, Alarm, Ring, Fragile))
            mode = chance.choice(RING_MODES if class_ is Ring else MODES)
        if class_ is Fragile and mode in {"double", "block"}:
            mode = "ok"
        argument: str | datetime | None = None
        if issubclass(class_, Alarm):
            argument = self.now() + chance.choice([0, 0.5, 3, 20]) * SECOND
        elif issubclass(class_, Call | Fragile):
            argument = chance.choice(["a", "b"])
        return class_(name, mode, argument)

    def now(self) -> datetime:
        """The time."""
        return from_nanos(self.clock.time_ns())

    # Executors

    async def _run(self, env: Environment, ref: Ref, task: Any) -> None:
        process = current_process()
        self._begin(process, ref, task)
        place = (process, task.type.name + str(task.argument if isinstance(task, Call | Fragile) else ""))
        self._running[place] += 1
        if self._running[place] > self.concurrency:
            self.wrong.append(f"{self._running[place]} tasks run at once in the queue {place}")
        meter = self.meters.get(process)
        queue = task.type.name, task.argument if isinstance(task, Call | Fragile) else ""
        well: bool | None = None
        try:
            await self._do(env, ref, task)
            well = True
        except (DestinationDownError, asyncio.CancelledError):
            # It is cancelled for the time that it took, or because nothing is started any more.
            well = False
            raise
        except TerminalError:
            # An answer, too.
            well = True
            raise
        finally:
            self._running[place] -= 1
            if meter is not None and well is not None:
                meter.answered(queue, well=well)

    def _begin(self, process: Process | None, ref: Ref | None, task: Any) -> None:
        self.attempts[task.name] += 1
        self._trace(process, "runs", task.type.name, task.name, task.mode)
        if isinstance(task, Alarm) and self.now() < task.argument:
            self.wrong.append(f"{task.name} has fired before it was due")
        if process is None or ref is None:
            return
        since = self.paused.get(process, {}).get(ref.execution.run_id)
        # Whoever was being checked at that moment goes on.
        if since is not None and self.now() > since + _UNDER_WAY:
            self.wrong.append(f"{task.name} runs in {process}, which has paused its execution")

    async def _do(self, env: Environment, ref: Ref, task: Any) -> None:
        name, mode = task.name, task.mode
        healed = self.healed
        first = self.attempts[name] <= 2 and not healed
        if mode == "fatal" and not healed:
            raise TerminalError(name)
        if mode == "failing" and not healed:
            raise OSError(name)
        if mode == "flaky" and first:
            raise OSError(name)
        if mode == "busy" and first:
            raise BusyError(name, retry_after=2 * SECOND)
        if mode == "down" and first:
            raise DestinationDownError(OSError(name), retry_after=self.chance.choice([None, 4 * SECOND]))
        if mode == "hang" and first:
            await asyncio.get_running_loop().create_future()
        if mode == "slow":
            await asyncio.sleep(self.chance.choice([0.01, 1, 4]))
        if mode == "silent":
            return
        if mode == "other":
            await self._tell_other(env, ref, name)
        if mode == "start":
            await self._start_other(env, ref, name)
        if mode == "read":
            await env.read(ref, lambda node: node.data(Ledger))
        if mode == "finish":
            await env.update(ref, finish(name))
            return
        if mode == "block":
            async with env.access(ref, AccessType.WRITE) as node:
                await asyncio.sleep(self.chance.choice([0, 0.2]))
                append(f"ran {name} #")(node)
            return
        await env.update(ref, self._wrote(name, mode))
        if mode == "double":
            try:
                await env.update(ref, self._wrote(name, mode))
            except StaleReferenceError:
                pass
            else:
                self.wrong.append(f"{name} has written twice")
        if mode == "noted":
            raise DestinationDownError(None)

    def _wrote(self, name: str, mode: str) -> Any:
        return append(f"ran {name} #", *([Soon(f"{name}s", "ok")] if mode == "spawn" else []))

    def _ring(self, env: Environment, node: Node, task: Ring) -> None:
        self._begin(current_process(), None, task)
        if env.now() < task.argument:
            self.wrong.append(f"{task.name} has fired before it was due")
        healed = self.healed
        if task.mode == "fatal" and not healed:
            raise TerminalError(task.name)
        if task.mode == "flaky" and self.attempts[task.name] <= 2 and not healed:
            raise OSError(task.name)
        if task.mode != "silent":
            self._wrote(task.name, task.mode)(node)

    async def _tell_other(self, env: Environment, ref: Ref, name: str) -> None:
        """An effect on another execution, once, whatever runs twice: the task's name is the request's id."""
        assert isinstance(env, Engine)
        with contextlib.suppress(DuplicateRequestError):
            await env.update_with_start(
                ExecutionKey(NAMESPACE, f"other-{ref.execution.id[-1]}"),
                Ledger([f"start {name}"]),
                append(f"did {name} {{}} -"),
                machine_type=MachineType(ROOT, "root"),
                request_id=name,
            )

    async def _start_other(self, env: Environment, ref: Ref, name: str) -> None:
        """An execution of its own, once."""
        assert isinstance(env, Engine)
        try:
            await env.start(
                ExecutionKey(NAMESPACE, f"by-{name}"),
                Ledger([f"start {name}"]),
                machine_type=MachineType(ROOT, "root"),
                request_id=name,
                on_start=append(f"did {name}e {{}} -", Soon(f"{name}x", "ok")),
            )
        except ExecutionAlreadyStartedError:
            self.wrong.append(f"{name} was taken for another request")
