"""Kill a process with an engine at random moments: no acknowledged update is lost, none half done.

    python tests/crash/engine_kills.py [--quick] [--kills N]            on SQLite
    python tests/crash/engine_kills.py --url-kind postgresql            on a server that is started for it

Each round starts a process that goes on where the killed one was. It updates a few executions over and over, and
says so when an update is acknowledged. An update writes its number into the root and into a child, and asks for
two tasks that note themselves. It also calls a few firms, each call starting a child execution, and makes the last
call of the killed one again. After each kill, and in the end, the database is compared with what was said.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import persistence
from hsm import Node, Ref
from hsm.engine import Backoff, Engine, EngineOptions
from hsm.errors import ExecutionNotFoundError
from persistence.store import EngineStore
from tests.crash._firms import check_firms, keep_hiring, register_firms
from tests.crash._kinds import ALL_KINDS, database_of
from tests.support.databases import Database
from tests.support.jobs import Alarm, Job, Lasting, Step, World, job, log, note, noted, step

ROOT: Final = Path(__file__).resolve().parents[2]
EXECUTIONS: Final = 8
CLIENTS: Final = ("a", "b")
CHILD: Final = step("child")


def options() -> EngineOptions:
    return EngineOptions(
        poll_interval=timedelta(milliseconds=50), backoff=Backoff(timedelta(milliseconds=10))
    )


def build(root: Node) -> None:
    root.add_child(CHILD, Step())


async def work(url: str) -> None:
    """What the killed process does: update, and say so when it is committed."""
    world = new_world()
    async with persistence.connect(url) as opened:
        store = persistence.require(opened, EngineStore)
        async with Engine(world.registry, store, options()) as engine, asyncio.TaskGroup() as group:
            for number in range(EXECUTIONS):
                group.create_task(keep_updating(engine, str(number)))
            for client in CLIENTS:
                group.create_task(keep_hiring(engine, client, say))


def new_world() -> World:
    world = World()
    world.on(Lasting, noted)
    register_firms(world.registry)
    return world


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def keep_updating(engine: Engine, id_: str) -> None:
    ref = await engine.start(job(id_), Job(), request_id="kills", on_start=build)
    following = 1 + max([*map(int, plain(await engine.read(ref, log))), 0])
    while True:
        number = following

        def change(root: Node, number: int = number) -> None:
            due = engine.now() + timedelta(milliseconds=5)
            note(str(number), Lasting(f"call {number}"))(root)
            note(str(number), Alarm(f"alarm {number}", due))(root.child((CHILD,)))

        await engine.update(ref, change)
        say(f"{id_} {number}")
        following += 1


def plain(lines: list[str]) -> list[str]:
    """The numbers of updates in a log, without the notes of tasks."""
    return [line for line in lines if line.isdigit()]


async def check(url: str, acknowledged: Counter[str]) -> tuple[int, int, int]:
    """Compare, first as the kill left it and then after all tasks have run; updates, tasks and calls counted.

    The calls are those since the last check.
    """
    world = new_world()
    updates = tasks = 0
    async with Database(url) as database:
        async with Engine(world.registry, database.store, options(), run_tasks=False) as engine:
            await database.check()
            for number in range(EXECUTIONS):
                updates += await check_updates(engine, str(number), acknowledged)
        async with Engine(world.registry, database.store, options()) as engine:
            await engine.drain()
            while await database.queued():
                await asyncio.sleep(0.02)
                await engine.drain()
            for number in range(EXECUTIONS):
                tasks += await check_tasks(engine, str(number))
            calls = await check_firms(engine, acknowledged)
            assert [dead async for dead in engine.dead_letters()] == []
        await database.check()
    return updates, tasks, calls


async def check_updates(engine: Engine, id_: str, acknowledged: Counter[str]) -> int:
    try:
        root = plain(await engine.read(Ref(job(id_)), log))
        child = plain(await engine.read(Ref(job(id_), (CHILD,)), log))
    except ExecutionNotFoundError:
        assert not acknowledged[id_], f"execution {id_} is lost"
        return 0
    expected = [str(number) for number in range(1, len(root) + 1)]
    assert root == expected, f"updates of {id_} are lost or done twice: {root}"
    assert child == root, f"an update of {id_} is half done: {len(root)} and {len(child)}"
    assert len(root) >= acknowledged[id_], f"{id_}: {acknowledged[id_]} acknowledged, {len(root)} there"
    return len(root)


async def check_tasks(engine: Engine, id_: str) -> int:
    found = 0
    for path, name in (((), "call"), ((CHILD,), "alarm")):
        try:
            lines = await engine.read(Ref(job(id_), path), log)
        except ExecutionNotFoundError:
            return 0
        done = sorted(line for line in lines if not line.isdigit())
        assert done == sorted(f"{name} {number}" for number in plain(lines)), f"tasks of {id_}: {done}"
        found += len(done)
    return found


def run(kind: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: Counter[str] = Counter()
    with database_of(kind) as url:
        updates = tasks = calls = 0
        for _ in range(kills):
            acknowledged |= kill_once(url, chance.uniform(0.01, 0.5))
            updates, tasks, answered = asyncio.run(check(url, acknowledged))
            calls += answered
        told = sum(number for id_, number in acknowledged.items() if id_.isdigit())
        sys.stdout.write(
            f"{kind}, {kills} kills, seed {seed}: {updates} updates, {told} of them acknowledged,"
            f" {tasks} tasks; lost 0, half done 0;"
            f" {calls} calls answered once each, and as many child executions started once each\n"
        )
        assert updates, "nothing was done between the kills"


def kill_once(url: str, after_seconds: float) -> Counter[str]:
    """Run the worker, kill it a while after its first word; the last update of each execution that it named."""
    with subprocess.Popen(
        [sys.executable, __file__, "--work", url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as worker:
        assert worker.stdout is not None
        lines = [worker.stdout.readline()]
        time.sleep(after_seconds)
        assert worker.poll() is None, f"the process has ended by itself, with {worker.returncode}"
        worker.kill()
        lines += worker.stdout.readlines()
    said: Counter[str] = Counter()
    for line in lines:
        if line.endswith("\n") and line.strip():
            id_, number = line.split()
            said[id_] = max(said[id_], int(number))
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a hundredth of the kills")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument(
        "--url-kind", choices=ALL_KINDS, default="sqlite", metavar="KIND", help="which database"
    )
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        asyncio.run(work(arguments.work))
    else:
        kills = max(arguments.kills // 100, 1) if arguments.quick else arguments.kills
        run(arguments.url_kind, kills, arguments.seed)


if __name__ == "__main__":
    main()
