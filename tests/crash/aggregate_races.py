"""Several processes tell one aggregate at once, and some are killed: every command is carried out once, in one chain.

    python tests/crash/aggregate_races.py [--quick] [--processes N] [--commands N] [--kinds sqlite postgresql ...]
    python tests/crash/aggregate_races.py --break-version-check      the audit has to find something then

Each process tells its commands with `RETRY_NO_VC`, all at once in the first round, one after the other in the
second. In the third, processes are killed with SIGKILL and started again, and tell the same requests once more. In
the end the history is read: its chain is whole, and each command is there once, under the id that was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import persistence  # noqa: E402
from hsm.aggregate import Engine  # noqa: E402
from persistence.journal import RETRY_NO_VC, EventId, Journal, RetryNoVCError  # noqa: E402
from persistence.store import EngineStore  # noqa: E402
from tests.crash._kinds import ALL_KINDS, add_kinds, database_of, table  # noqa: E402
from tests.support.accounts import Accounts, Deposit  # noqa: E402

NAMESPACE: Final = "races"
TOGETHER, IN_TURN, KILLED = "together", "in turn", "killed"
ROUNDS: Final = (TOGETHER, IN_TURN, KILLED)
TIME_LIMIT_SECONDS: Final = 300


class Careless(Journal):
    """A journal that appends whatever the version is: the audit has to notice."""

    async def commit(self, history, events, expected, *, type=""):  # type: ignore[no-untyped-def]  # noqa: A002  as it is
        again = [persistence.journal.NewEvent(event.payload) for event in events]
        return await super().commit(history, again, RETRY_NO_VC, type=type)


# What a process does


async def work(url: str, id_: UUID, name: str, commands: int, round_: str, *, careless: bool) -> None:
    async with persistence.connect(url) as opened:
        store = persistence.require(opened, EngineStore)
        journal = (Careless if careless else Journal)(store, NAMESPACE)
        engine = Engine(journal, Accounts())
        print("ready", flush=True)
        sys.stdin.readline()

        async def tell(number: int) -> None:
            request = f"{name}-{number}"
            while True:
                try:
                    vid = await engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((1,), request))
                except RetryNoVCError:
                    print("gave-up", request, flush=True)
                else:
                    print("told", request, vid, flush=True)
                    return

        if round_ == TOGETHER:
            await asyncio.gather(*map(tell, range(commands)))
        else:
            for number in range(commands):
                await tell(number)
        print("counts", engine.counts.commits, engine.counts.conflicts, flush=True)


# What the parent does


def start(
    url: str, id_: UUID, name: str, commands: int, round_: str, *, careless: bool
) -> subprocess.Popen[str]:
    program = [sys.executable, __file__, "--work", url, str(id_), name, str(commands), round_]
    process = subprocess.Popen(
        program + ["--break-version-check"] * careless,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", f"process {name} did not start"
    return process


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def run_round(
    url: str, id_: UUID, processes: int, commands: int, round_: str, *, careless: bool
) -> list[str]:
    """Carry out a round; what the processes have printed."""
    names = [f"{round_[0]}{number}" for number in range(processes)]
    running = {name: start(url, id_, name, commands, round_, careless=careless) for name in names}
    for process in running.values():
        release(process)
    lines: list[str] = []
    if round_ == KILLED:
        for number, name in enumerate(names):
            process = running[name]
            assert process.stdout is not None
            first = range(1 + number * commands // (2 * processes))
            lines += [process.stdout.readline() for _ in first]
            process.kill()
            lines += process.communicate()[0].splitlines()
            running[name] = start(url, id_, name, commands, round_, careless=careless)
            release(running[name])
    for process in running.values():
        lines += process.communicate(timeout=TIME_LIMIT_SECONDS)[0].splitlines()
        assert process.returncode == 0, f"a process ended with {process.returncode}"
    return lines


async def audit(url: str, id_: UUID, lines: list[str], requests: set[str]) -> list[str]:
    """What is wrong with a history."""
    answered = {line.split()[1]: line.split()[2] for line in lines if line.startswith("told")}
    problems = [f"no answer to {request}" for request in sorted(requests - set(answered))]
    async with persistence.connect(url) as store:
        journal = Journal(store, NAMESPACE)
        found: dict[str, list[EventId]] = {}
        async for event in journal.find(id_):
            fact = Accounts().new_event(event.message())
            found.setdefault(getattr(fact, "request_id", ""), []).append(event.id)
    for request in sorted(requests):
        ids = found.pop(request, [])
        if len(ids) != 1:
            problems.append(f"{request} is there {len(ids)} times")
        elif answered.get(request, "") < str(ids[0]):
            problems.append(f"{request} is event {ids[0]}, answered was {answered.get(request)}")
    return problems + [f"{request!r} was never told" for request in found]


def try_kind(kind: str, processes: int, commands: int, *, careless: bool) -> tuple[list[list[object]], int]:
    rows: list[list[object]] = []
    failures = 0
    with database_of(kind) as url:
        for round_ in ROUNDS:
            id_ = uuid4()
            begin = time.perf_counter()
            lines = run_round(url, id_, processes, commands, round_, careless=careless)
            seconds = time.perf_counter() - begin
            requests = {
                f"{round_[0]}{number}-{each}" for number in range(processes) for each in range(commands)
            }
            problems = asyncio.run(audit(url, id_, lines, requests))
            for problem in problems[:5]:
                print(f"{kind}, {round_}: {problem}")
            failures += len(problems)
            words = Counter(line.split()[0] for line in lines if line.strip())
            counts = [line.split() for line in lines if line.startswith("counts")]
            commits = sum(int(count[1]) for count in counts)
            conflicts = sum(int(count[2]) for count in counts)
            rows.append(
                [
                    kind,
                    round_,
                    len(requests),
                    commits,
                    conflicts,
                    words["gave-up"],
                    len(problems),
                    f"{seconds:.1f}",
                ]
            )
    return rows, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="SQLite and PostgreSQL, few commands")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--commands", type=int, default=50, help="of each process")
    parser.add_argument("--break-version-check", action="store_true")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    add_kinds(parser, ALL_KINDS)
    arguments = parser.parse_args()
    careless: bool = arguments.break_version_check
    if arguments.work:
        url, id_, name, commands, round_ = arguments.work
        asyncio.run(work(url, UUID(id_), name, int(commands), round_, careless=careless))
        return 0
    kinds = ("sqlite", "postgresql") if arguments.quick else arguments.kinds
    commands = 15 if arguments.quick else arguments.commands
    rows: list[list[object]] = [
        ["database", "round", "commands", "commits", "conflicts", "gave up", "problems", "seconds"]
    ]
    failures = 0
    for kind in kinds:
        told, wrong = try_kind(kind, arguments.processes, commands, careless=careless)
        rows += told
        failures += wrong
    print(table(rows))
    print(f"{failures} problems")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
