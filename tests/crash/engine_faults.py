"""Several processes with engines on one database, killed and stopped at random: nothing is lost, nothing done twice.

    python tests/crash/engine_faults.py                    80 faults on each of SQLite, PostgreSQL, Valkey and etcd
    python tests/crash/engine_faults.py [--quick] [--faults N] [--processes N] [--kinds sqlite postgresql ...]
    python tests/crash/engine_faults.py --break-version-check       the audit has to find something then

All processes update the same executions, one generation of them after the other. An update has a mark of its own,
writes it into the root and into a child in one commit, asks for a task and a timer that note it once more, and is
acknowledged on the standard output. One client of each process calls firms (see `_firms`), all of them the same
ones with the same requests, which start child executions. A fault is a SIGKILL and a new process, or a SIGSTOP for longer than a lease.
In the end the database is compared with what was acknowledged: every mark is there once, in the root and in the
child in the same order, and its two tasks have noted it once; every execution that was begun has come to its
end; no task is without its machine, no machine without its task; each call was carried out once and answered
alike everywhere, and has started one child, of whose end its firm has heard once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import attrs

import persistence
from hsm import Node, Ref
from hsm.engine import Backoff, Engine, EngineOptions
from hsm.errors import RetryLaterError
from persistence.store import EngineStore, Operation, SetRequest
from tests.crash._firms import check_firms, keep_hiring, register_firms
from tests.crash._kinds import ALL_KINDS, add_kinds, database_of, table
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    State,
    Step,
    World,
    finish,
    job,
    log,
    note,
    noted,
    step,
)

ROOT: Final = Path(__file__).resolve().parents[2]
DEFAULT_KINDS: Final = ("sqlite", "postgresql", "valkey", "etcd")
CLIENTS: Final = 6
UPDATES: Final = 40
LEASE_SECONDS: Final = 2
STOP_SECONDS: Final = 3.0
PATIENCE_SECONDS: Final = 20.0
QUIET_SECONDS: Final = 60.0
CHILD: Final = step("child")


def options() -> EngineOptions:
    return EngineOptions(
        shard_count=8,
        lease_seconds=LEASE_SECONDS,
        poll_interval=timedelta(milliseconds=100),
        backoff=Backoff(timedelta(milliseconds=10), timedelta(seconds=1)),
    )


# What the processes do


class Careless:
    """A store that forgets to check the version of an execution: the audit has to notice."""

    def __init__(self, store: EngineStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def multi(self, operations: Sequence[Operation]) -> str:
        return await self._store.multi(
            [
                attrs.evolve(operation, etag=None)
                if isinstance(operation, SetRequest) and operation.key.startswith("e/") and operation.etag
                else operation
                for operation in operations
            ]
        )


async def work(url: str, first: int, *, careless: bool) -> None:
    world = World()
    world.on(Lasting, noted)
    register_firms(world.registry)
    async with persistence.connect(url) as opened:
        store = persistence.require(opened, EngineStore)
        if careless:
            store = Careless(store)  # type: ignore[assignment]  # passes everything else on
        async with Engine(world.registry, store, options()) as engine, asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(keep_updating(engine, client, first))
            if not careless:
                group.create_task(keep_calling(engine))


async def keep_updating(engine: Engine, client: int, generation: int) -> None:
    while True:
        id_ = f"{generation}-{client}"
        try:
            ref = await engine.start(job(id_), Job(), request_id="faults", on_start=build)
            while await update(engine, ref):
                pass
        except RetryLaterError:
            # The store was away, or knows no answer: the same again.
            await asyncio.sleep(0.05)
            continue
        print(f"end {generation}", flush=True)
        generation += 1


async def keep_calling(engine: Engine) -> None:
    while True:
        try:
            await keep_hiring(engine, "firm", lambda line: print(f"hired {line}", flush=True))
        except RetryLaterError:
            await asyncio.sleep(0.05)


def build(root: Node) -> None:
    root.add_child(CHILD, Step())


async def update(engine: Engine, ref: Ref) -> bool:
    """Make one update, unless there have been enough of them; whether there may be more."""
    mark = f"m{random.getrandbits(60):015x}"

    def change(root: Node) -> bool:
        if len(marks(log(root))) >= UPDATES:
            if root.data(Job).state is not State.DONE:
                finish()(root)
            return False
        due = engine.now() + timedelta(milliseconds=random.randrange(50))
        note(mark, Lasting(f"call {mark}"))(root)
        note(mark, Alarm(f"alarm {mark}", due))(root.child((CHILD,)))
        return True

    if not await engine.update(ref, change):
        return False
    print(f"did {ref.execution.id} {mark}", flush=True)
    return True


def marks(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("m")]


# Faults


class Process:
    """A process under test, and what it has said."""

    def __init__(self, url: str, first: int, *, careless: bool) -> None:
        command = [sys.executable, __file__, "--work", url, "--first", str(first)]
        if careless:
            command.append("--break-version-check")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.marks: list[tuple[str, str]] = []
        self.generation = first
        self.stopped_until = 0.0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if line.endswith("\n") and words[0] in {"did", "hired"}:
                self.marks.append((words[1], words[2]))
            elif line.endswith("\n"):
                self.generation = max(self.generation, int(words[1]))

    def stop(self, seconds: float) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        self.stopped_until = time.monotonic() + seconds

    def wake_if_due(self) -> None:
        if self.stopped_until and time.monotonic() >= self.stopped_until:
            self.stopped_until = 0.0
            os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> list[tuple[str, str]]:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        return self.marks


def inflict(
    url: str, processes: int, faults: int, chance: random.Random, *, careless: bool
) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Let processes work, and kill and stop them; what was acknowledged, and the faults by kind."""
    acknowledged: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    crew = [Process(url, 0, careless=careless) for _ in range(processes)]
    done = 0
    try:
        while counts.total() < faults:
            wait_for_work(crew, done)
            time.sleep(chance.uniform(0.05, 1.0))
            for process in crew:
                process.wake_if_due()
            done = sum(len(process.marks) for process in crew)
            victim = chance.randrange(processes)
            process = crew[victim]
            assert process.process.poll() is None, f"a process has ended with {process.process.returncode}"
            if process.stopped_until:
                continue
            if chance.random() < 0.4:
                counts["stops"] += 1
                process.stop(STOP_SECONDS * chance.uniform(0.5, 1.5))
            else:
                counts["kills"] += 1
                acknowledged += process.kill()
                done -= len(process.marks)
                newest = max(other.generation for other in crew)
                crew[victim] = Process(url, newest, careless=careless)
        while any(process.stopped_until for process in crew):
            time.sleep(0.1)
            for process in crew:
                process.wake_if_due()
        time.sleep(LEASE_SECONDS)
    finally:
        for process in crew:
            acknowledged += process.kill()
    return acknowledged, counts


def wait_for_work(crew: Sequence[Process], done: int) -> None:
    """Return when something has been done since the last fault, or if nothing is for a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum(len(process.marks) for process in crew) <= done and time.monotonic() < deadline:
        time.sleep(0.02)
        for process in crew:
            process.wake_if_due()


# The audit


async def audit(url: str, acknowledged: Sequence[tuple[str, str]]) -> tuple[Counter[str], list[str]]:
    """Let everything come to its end, then compare; what was counted, and what is wrong."""
    by_execution: dict[str, set[str]] = {}
    hired: Counter[str] = Counter()
    for id_, mark in acknowledged:
        if mark.isdigit():
            hired[id_] = max(hired[id_], int(mark))
        else:
            by_execution.setdefault(id_, set()).add(mark)
    world = World()
    register_firms(world.registry)
    counts: Counter[str] = Counter(acknowledged=sum(map(len, by_execution.values())))
    problems: list[str] = []
    async with Database(url) as database:
        # Before anything changes it: it is read in pieces.
        await check_rows(database, counts, problems)
    async with Database(url) as database, Engine(world.registry, database.store, options()) as engine:
        infos = [info async for info in engine.list(namespace="tests")]
        for id_ in by_execution.keys() - {info.key.id for info in infos}:
            counts["lost"] += len(by_execution[id_])
            problems.append(f"{id_}: the execution is lost")
        left = await database.queued()
        while left:
            # However many there are: what counts is that they get fewer.
            with suppress(TimeoutError):
                async with asyncio.timeout(QUIET_SECONDS):
                    await engine.drain()
                    while await database.queued():
                        await asyncio.sleep(0.05)
                        await engine.drain()
            before, left = left, await database.queued()
            if len(left) >= len(before):
                counts["left"] += len(left)
                problems.append(f"tasks that come to no end: {left}")
                break
        for info in infos:
            found = await check_execution(engine, Ref(info.key), by_execution.get(info.key.id, set()))
            counts += found
            if found.total() > found["updates"]:
                problems.append(f"{info.key.id}: {dict(found)}")
            counts["executions"] += 1
        try:
            counts["calls"] = await check_firms(engine, hired)
        except AssertionError as error:
            counts["family"] += 1
            problems.append(str(error))
        dead = [dead.error async for dead in engine.dead_letters()]
        counts["left"] += len(dead)
        problems += dead
        await check_rows(database, counts, problems)
    return counts, problems


async def check_rows(database: Database, counts: Counter[str], problems: list[str]) -> None:
    """Every task has its machine, and every machine its tasks."""
    try:
        await database.check()
    except AssertionError as error:
        counts["orphans"] += 1
        problems.append(str(error))


async def check_execution(engine: Engine, ref: Ref, acknowledged: set[str]) -> Counter[str]:
    """What was done to one execution, and what of it is wrong."""
    root = await engine.read(ref, log)
    child = await engine.read(Ref(ref.execution, (CHILD,)), log)
    written = marks(root)
    counts = Counter(
        updates=len(written),
        lost=len(acknowledged - set(written)),
        twice=len(written) - len(set(written)),
        half=len(set(written) ^ set(marks(child))) + (marks(child) != written),
        stale=max(len(written) - UPDATES, 0),
    )
    for kind, lines in (("call", root), ("alarm", child)):
        done = Counter(line for line in lines if line.startswith(kind))
        expected = Counter(f"{kind} {mark}" for mark in written)
        counts["lost"] += (expected - done).total()
        counts["twice"] += (done - expected).total()
    return counts


COLUMNS: Final = (
    "executions",
    "updates",
    "acknowledged",
    "calls",
    "lost",
    "twice",
    "half",
    "stale",
    "left",
    "orphans",
    "family",
)
WRONG: Final = COLUMNS[4:]


def run(kind: str, arguments: argparse.Namespace, faults: int) -> tuple[Counter[str], list[str]]:
    """All faults on one database."""
    chance = random.Random(arguments.seed)
    began = time.monotonic()
    with database_of(kind) as url:
        acknowledged, faulty = inflict(
            url, arguments.processes, faults, chance, careless=arguments.break_version_check
        )
        counts, problems = asyncio.run(audit(url, acknowledged))
    if not counts["updates"]:
        problems.append("nothing was done between the faults")
    counts["seconds"] = round(time.monotonic() - began)
    return counts + faulty, problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few faults only")
    parser.add_argument("--faults", type=int, default=80, help="on each database")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--break-version-check", action="store_true", help="see that the audit finds it")
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    add_kinds(parser, ALL_KINDS, DEFAULT_KINDS)
    arguments = parser.parse_args()
    if arguments.work:
        asyncio.run(work(arguments.work, arguments.first, careless=arguments.break_version_check))
        return
    faults = 6 if arguments.quick else arguments.faults
    kinds = ("sqlite", "postgresql") if arguments.quick else arguments.kinds
    print(f"seed {arguments.seed}, {arguments.processes} processes", flush=True)
    if arguments.break_version_check:
        _, problems = run(kinds[0], arguments, faults)
        if not problems:
            sys.exit(
                "the audit has found nothing, though executions were written without a look at their version"
            )
        print(f"the audit has found {len(problems)} problems, the first is {problems[0]}")
        return
    rows: list[list[object]] = [["database", "kills", "stops", *COLUMNS, "seconds"]]
    total: Counter[str] = Counter()
    wrong: list[str] = []
    for kind in kinds:
        counts, problems = run(kind, arguments, faults)
        rows.append([kind, *(counts[str(name)] for name in rows[0][1:])])
        total += counts
        wrong += [f"{kind}: {problem}" for problem in problems]
    rows.append(["all", *(total[str(name)] for name in rows[0][1:])])
    print(table(rows))
    print(f"{total['kills'] + total['stops']} faults in all")
    if wrong or any(total[name] for name in WRONG):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
