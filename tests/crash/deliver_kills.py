"""SIGKILLs at random moments of `hsm deliver`; afterwards the receiver's log and the rows are checked.

    python tests/crash/deliver_kills.py                            100 kills, 2 000 lines
    python tests/crash/deliver_kills.py --kills 500 --seed 7
    python tests/crash/deliver_kills.py --quick                    a few seconds

The file grows from run to run, so that there is something to do until the last kill. A kill follows what the
run has got done: so many answers or confirmations of the receiver, so many changes of the database's log, or
a time that may also fall into the start of the process. The rows of the database are checked after some of the
kills, and in the end; the receiver's log in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attrs

from hsm.cli._demo import Books, compare, delivery_ids, receiver, write_deliveries
from hsm.cli._receiver import read_log
from tests.crash._rows import problems

_POLL_SECONDS = 0.001
_CHECK_EVERY = 5
_LONGEST_RUN_SECONDS = 120


@attrs.frozen
class Story:
    """What came of it."""

    books: Books
    problems: tuple[str, ...]
    kills: Counter[str]
    runs: int
    confirmations: int

    @property
    def good(self) -> bool:
        return self.books.balanced and not self.problems


class Progress:
    """How far a run is, as seen from outside."""

    def __init__(self, log: Path, wal: Path) -> None:
        self._log = log.open("rb")
        self._log.seek(0, 2)
        self._wal = wal
        self._wal_seen = self._stat()
        self._began = time.monotonic()
        self.answers = 0
        self.confirmations = 0
        self.commits = 0

    def look(self) -> None:
        block = self._log.read()
        self.answers += block.count(b"\n")
        self.confirmations += block.count(b'"status": 200')
        wal = self._stat()
        self.commits += wal != self._wal_seen
        self._wal_seen = wal

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def close(self) -> None:
        self._log.close()

    def _stat(self) -> tuple[int, int]:
        try:
            stat = self._wal.stat()
        except FileNotFoundError:
            return 0, 0
        return stat.st_size, stat.st_mtime_ns


def choose_moment(chance: random.Random, share: int) -> tuple[str, Callable[[Progress], bool]]:
    """When to kill a run, at random, and what that goes by."""
    goal = chance.randint(1, max(share, 2))
    seconds = chance.uniform(0.0, 1.5)
    return chance.choice(
        [
            ("confirmations", lambda progress: progress.confirmations >= goal),
            ("answers", lambda progress: progress.answers >= goal),
            ("commits", lambda progress: progress.commits >= goal),
            ("time", lambda progress: progress.seconds >= seconds),
        ]
    )


async def tell(folder: Path, *, kills: int, lines: int, seed: int, say: Callable[[str], None]) -> Story:
    """Play the story in an empty folder."""
    chance = random.Random(seed)
    file, log, database = folder / "deliveries.jsonl", folder / "received.jsonl", folder / "deliveries.db"
    url = f"sqlite:///{database}"
    wal = database.with_name(database.name + "-wal")
    killed: Counter[str] = Counter()
    wrong: list[str] = []
    written = runs = 0
    share = -(-lines // kills)
    async with receiver(log) as port:
        while killed.total() < kills or written < lines:
            more = min(share, lines - written)
            write_deliveries(file, range(written, written + more), port)
            written += more
            runs += 1
            reason = await run_and_kill(file, url, log, wal, *choose_moment(chance, share))
            if reason:
                killed[reason] += 1
            if killed.total() % _CHECK_EVERY == 1 and reason:
                found = await problems(url) if database.exists() else []
                wrong += [f"after kill {killed.total()}: {problem}" for problem in found]
                say(f"{killed.total()} kills, {written} lines, {len(wrong)} problems")
            if runs > 3 * kills + 10:
                wrong.append(f"only {killed.total()} of {runs} runs could be killed")
                break
        process = await start(file, url)
        _, errors = await asyncio.wait_for(process.communicate(), _LONGEST_RUN_SECONDS)
        if process.returncode not in {0, 1} or errors:
            wrong.append(f"the last run ended with {process.returncode}: {errors.decode()}")
    books = await compare(delivery_ids(range(written)), log, url)
    wrong += await problems(url)
    wrong += different_keys(log)
    confirmations = sum(received.status == 200 for received in read_log(log))
    return Story(books, tuple(wrong), killed, runs + 1, confirmations)


async def start(file: Path, url: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hsm.cli", "deliver", str(file), "--db", url),
        *("--first-retry", "0.05", "--longest-retry", "1"),
        stdout=DEVNULL,
        stderr=PIPE,
    )


async def run_and_kill(
    file: Path, url: str, log: Path, wal: Path, reason: str, moment: Callable[[Progress], bool]
) -> str:
    """Run and kill; what the kill went by, or "" if the run ended before."""
    progress = Progress(log, wal)
    process = await start(file, url)
    try:
        while process.returncode is None:
            progress.look()
            if moment(progress):
                process.kill()
                break
            await asyncio.sleep(_POLL_SECONDS)
        _, errors = await process.communicate()
    finally:
        progress.close()
    if process.returncode in {0, 1} and not errors:
        return ""
    if process.returncode != -9 or errors:
        raise RuntimeError(f"a run ended with {process.returncode}: {errors.decode()}")
    return reason


def different_keys(log: Path) -> list[str]:
    """Deliveries whose attempts did not all carry the same request id."""
    keys: dict[str, str] = {}
    return [
        f"{received.id} came with the keys {keys[received.id]} and {received.key}"
        for received in read_log(log)
        if keys.setdefault(received.id, received.key) != received.key
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--quick", action="store_true", help="8 kills, 160 lines")
    arguments = parser.parse_args()
    kills, lines = (8, 160) if arguments.quick else (arguments.kills, arguments.lines)
    print(f"seed {arguments.seed}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hsm-kills-") as folder:
        story = asyncio.run(tell(Path(folder), kills=kills, lines=lines, seed=arguments.seed, say=print))
    for problem in story.problems[:20]:
        print(problem)
    for name, ids in (("lost", story.books.lost), ("inconsistent", story.books.inconsistent)):
        if ids:
            print(f"{name}: {' '.join(ids[:20])}")
    by = ", ".join(f"{count} by {reason}" for reason, count in sorted(story.kills.items()))
    print(f"{story.kills.total()} kills ({by}) in {story.runs} runs, {time.monotonic() - began:.0f} s")
    print(
        f"{story.books.delivered} delivered, {story.books.failed} failed for good,"
        f" {story.books.duplicated} duplicated, {len(story.books.lost)} lost,"
        f" {len(story.books.inconsistent)} inconsistent, {len(story.problems)} problems"
    )
    sys.exit(0 if story.good else 1)


if __name__ == "__main__":
    main()
