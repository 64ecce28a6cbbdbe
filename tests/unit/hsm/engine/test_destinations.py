"""Many destinations, some of which hang: all tasks of the others run, in their time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from hsm import Environment, Ref
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database
from tests.support.jobs import Alarm, Lasting, World, log, noted, small, started

DESTINATIONS = 50
HANGING = 5
TASKS = 4
SECOND = timedelta(seconds=1)


def hangs(number: int) -> bool:
    return number % (DESTINATIONS // HANGING) == 0


async def test_destinations_that_hang_hold_up_no_task_of_the_others(
    world: World, database: Database, clock: FakeClock
) -> None:
    """Each has more tasks than it may run at once and than its queue holds, and timers besides."""

    async def call(env: Environment, ref: Ref, task: Lasting) -> None:
        if hangs(int(task.destination)):
            await asyncio.Event().wait()
        await noted(env, ref, task)

    world.on(Lasting, call)
    options = small(
        concurrency=1, queue_buffer=2, timer_window=5, task_timeout=None, drain_timeout=timedelta()
    )
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        refs: dict[int, list[Ref]] = {number: [] for number in range(DESTINATIONS)}
        for turn in range(TASKS):
            for number in range(DESTINATIONS):
                task = Lasting("call", destination=str(number))
                alarm = Alarm("alarm", clock.now() + turn * SECOND)
                refs[number].append(await started(engine, f"{turn}-{number}", task, alarm))
        expected = TASKS * (2 * DESTINATIONS - HANGING) + HANGING
        for _ in range(TASKS):
            clock.advance(SECOND)
            for _ in range(1000):
                if len(world.runs) >= expected:
                    break
                await asyncio.sleep(0.001)
        for number, executions in refs.items():
            logs = [sorted(await engine.read(ref, log)) for ref in executions]
            assert logs == [["alarm"] if hangs(number) else ["alarm", "call"]] * TASKS
        running = [queue.running for queue in engine.queues() if queue.destination is not None]
        assert running == [1] * HANGING
        assert len(engine._dispatcher) <= HANGING * 2
