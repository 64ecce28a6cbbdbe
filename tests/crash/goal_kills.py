"""Kill processes with durable goal-state engines at random moments: no entity is forgotten, none run twice at once.

    python tests/crash/goal_kills.py [--quick] [--kills N]              on SQLite
    python tests/crash/goal_kills.py --url-kind postgresql              on a server that is started for it

Three processes share a database. Each entity counts from run to run up to its goal, which is raised from outside
all the time; a run takes a while, fails now and then, and holds a lock of the operating system, which ends with the
process: a run that finds it taken is one too many. After each kill another process takes the place of the killed
one. In the end every entity has to be at its goal, and nothing but their rows may be left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import fcntl
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import persistence  # noqa: E402
from hsm.goalstate import (  # noqa: E402
    Action,
    ActionList,
    DurableEngine,
    DurableOptions,
    EntityKind,
    Run,
    Standing,
)
from persistence.errors import PersistenceError  # noqa: E402
from persistence.goals import goal_partition  # noqa: E402
from persistence.store import EngineStore  # noqa: E402
from tests.crash._kinds import ALL_KINDS, database_of  # noqa: E402

ENTITIES: Final = 30
PROCESSES: Final = 3
SHARDS: Final = 6
PATIENCE_SECONDS: Final = 120


class NoGoal(enum.Enum):
    """Goals are kept in files here, for the killer to compare."""


def options() -> DurableOptions:
    return DurableOptions(
        workers=8,
        shard_count=SHARDS,
        lease_seconds=2,
        poll_interval=timedelta(milliseconds=100),
        failure_retry_delay=timedelta(milliseconds=20),
        maximum_retry_delay=timedelta(milliseconds=200),
        run_timeout=timedelta(seconds=2),
        claim_margin=timedelta(seconds=2),
    )


@attrs.frozen
class Counter:
    """Counts in a file, up to a goal in another one."""

    id: str
    folder: Path

    def read(self) -> Standing[int, int]:
        return Standing(
            number_in(self.folder / f"{self.id}.count"), number_in(self.folder / f"{self.id}.goal")
        )

    def action_list(self, state: int, goal: int, /) -> ActionList[Counter]:
        return ActionList([Action("count", count)] if state < goal else [])


async def count(counter: Counter, run: Run) -> None:
    with held(counter.folder / f"{counter.id}.lock") as alone:
        if not alone:
            holder = number_in(counter.folder / f"{counter.id}.lock")
            with (counter.folder / "violations").open("a") as file:
                file.write(
                    f"{counter.id} is run twice at once, by {os.getpid()} with fence {run.fence} and {holder}\n"
                )
            return
        before = number_in(counter.folder / f"{counter.id}.count")
        # Now and then for long enough that a shard may change hands meanwhile.
        await asyncio.sleep(random.uniform(0.5, 1.5) if random.random() < 0.1 else random.uniform(0, 0.05))
        if random.random() < 0.1:
            raise OSError("now and then")
        write(counter.folder / f"{counter.id}.count", before + 1)
        run.again()


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether the lock is ours; it ends with the process, whatever ends that."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        try:
            # The threads of a killed process may take a while to end, and hold its locks; its event loop is dead.
            while not locked(descriptor) and has_ended(int(os.pread(descriptor, 20, 0) or 0)):
                time.sleep(0.001)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            os.pwrite(descriptor, f"{os.getpid():20d}".encode(), 0)
            yield True
            os.pwrite(descriptor, f"{0:20d}".encode(), 0)
    finally:
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def has_ended(process: int) -> bool:
    """Whether the main thread of a process is no more."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in {"Z", "X"}


def number_in(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0


def write(path: Path, number: int) -> None:
    other = path.with_suffix(f".{os.getpid()}")
    other.write_text(str(number))
    other.replace(path)


def kind_in(folder: Path) -> EntityKind[NoGoal]:
    return EntityKind("counter", lambda id_: Counter(id_, folder))


async def work(url: str, folder: Path) -> None:
    """What the killed processes do."""
    async with (
        persistence.connect(url) as store,
        DurableEngine(persistence.require(store, EngineStore), [kind_in(folder)], options()),
    ):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


@attrs.define
class Figures:
    """What has come of it.

    Attributes:
        steps: that the entities have gone.
        interrupted: runs that were going on in a process when it was killed.
        seconds: from the last kill until all were at their goals.
    """

    steps: int = 0
    interrupted: int = 0
    seconds: float = 0.0


async def kill_all_the_time(url: str, folder: Path, kills: int, chance: random.Random) -> Figures:
    """Raise goals and kill, then wait until every entity is at its goal."""
    figures = Figures()
    kind = kind_in(folder)
    processes = [start(url, folder) for _ in range(PROCESSES)]
    try:
        async with (
            persistence.connect(url) as store,
            DurableEngine(
                persistence.require(store, EngineStore), [kind], options(), run_entities=False
            ) as engine,
        ):
            goals = dict.fromkeys(map(str, range(ENTITIES)), 0)
            for _ in range(kills):
                for id_ in chance.sample(sorted(goals), 5):
                    goals[id_] += chance.randint(1, 3)
                    write(folder / f"{id_}.goal", goals[id_])
                    await enqueue(engine, kind, id_)
                victim = chance.randrange(PROCESSES)
                output = processes[victim].stdout
                assert output is not None
                await asyncio.to_thread(output.readline)
                await asyncio.sleep(chance.uniform(0.01, 0.3))
                processes[victim].kill()
                processes[victim].communicate()
                figures.interrupted += sum(
                    number_in(folder / f"{id_}.lock") == processes[victim].pid for id_ in goals
                )
                processes[victim] = start(url, folder)
            began = time.monotonic()
            while any(number_in(folder / f"{id_}.count") < goal for id_, goal in goals.items()):
                late = [
                    f"{id_}: {number_in(folder / f'{id_}.count')} of {goal}" for id_, goal in goals.items()
                ]
                assert time.monotonic() - began < PATIENCE_SECONDS, f"forgotten: {', '.join(late)}"
                await asyncio.sleep(0.05)
            figures.seconds = time.monotonic() - began
            while found := await unfinished(persistence.require(store, EngineStore)):
                assert time.monotonic() - began < PATIENCE_SECONDS, f"left: {found}"
                await asyncio.sleep(0.05)
            assert [info.id async for info in engine.list() if info.failures or info.dead] == []
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    figures.steps = sum(number_in(folder / f"{id_}.count") for id_ in goals)
    return figures


async def enqueue(engine: DurableEngine, kind: EntityKind[NoGoal], id_: str) -> None:
    while True:
        try:
            await engine.enqueue(kind, id_)
        except PersistenceError:
            await asyncio.sleep(0.01)
        else:
            return


async def unfinished(store: EngineStore) -> list[str]:
    """Rows that say that something is still to be done."""
    found: list[str] = []
    for shard in range(SHARDS):
        items = store.scan(goal_partition(shard), "", "")
        found += [item.key async for item in items if not item.key.startswith("g/")]
    return found


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--work", url, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )


def run(kind: str, kills: int, seed: int) -> None:
    with database_of(kind) as url, tempfile.TemporaryDirectory(prefix="hsm-goals-") as name:
        folder = Path(name)
        figures = asyncio.run(kill_all_the_time(url, folder, kills, random.Random(seed)))
        violations = folder / "violations"
        assert not violations.exists(), violations.read_text()
    sys.stdout.write(
        f"{kind}, {kills} kills of {PROCESSES} processes, seed {seed}: {ENTITIES} entities, {figures.steps} steps to"
        f" their goals, {figures.interrupted} of them cut off by a kill, all there {figures.seconds:.1f} s after the last"
        " kill; forgotten 0, run twice at once 0\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument(
        "--url-kind", choices=ALL_KINDS, default="sqlite", metavar="KIND", help="which database"
    )
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        asyncio.run(work(arguments.work, arguments.folder))
    else:
        kills = max(arguments.kills // 20, 1) if arguments.quick else arguments.kills
        run(arguments.url_kind, kills, arguments.seed)


if __name__ == "__main__":
    main()
