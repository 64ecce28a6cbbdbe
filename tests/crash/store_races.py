"""Two processes race on one database: what only one may win only one wins, and nothing is lost.

    python tests/crash/store_races.py                             SQLite, and every server that is installed
    python tests/crash/store_races.py --quick --kinds etcd redis  a second or two each
    python tests/crash/store_races.py --url postgresql://...      a database of one's own

Four races, each in rounds that both processes begin together, with random pauses, so that they interleave:

* first writes: 50 callers want to create one key; exactly one does.
* increments: 50 callers add one to a counter under its etag, again on a mismatch; none is lost, none done twice.
* multis: 200 callers read some of a few keys and write some of them, on condition that what they have read is
  still so. The writes of each key form one chain, and there is an order of all multis that explains what each read.
* absence: one process writes A if B is absent, the other B if A is absent; of each pair one does.

The columns tell how often each process won, which shows that they were at it together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final

import attrs

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from persistence import (  # noqa: E402
    ABSENT,
    CheckRequest,
    Concurrency,
    EngineStore,
    ETagMismatchError,
    GetRequest,
    Operation,
    SetOptions,
    SetRequest,
    connect,
    require,
)
from tests.crash._kinds import ALL_KINDS, add_kinds, database_of, table  # noqa: E402
from tests.support.servers import MissingServerError  # noqa: E402

_FIRST: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
_LONGEST_PAUSE_SECONDS: Final = 0.002
_LONGEST_ROUND_SECONDS: Final = 300
_READY_SECONDS: Final = 60
_NAMES: Final = ("A", "B")


@attrs.frozen
class Scale:
    """How much of each race."""

    first_writes: int = 100
    callers: int = 50
    increments: int = 100
    multi_rounds: int = 20
    multis: int = 200
    absence_rounds: int = 20
    pairs: int = 25


FULL: Final = Scale()
QUICK: Final = Scale(
    first_writes=10, callers=20, increments=8, multi_rounds=2, multis=100, absence_rounds=4, pairs=10
)


@attrs.frozen
class Outcome:
    """What came of one race."""

    race: str
    won: tuple[int, int]
    problems: tuple[str, ...]
    seconds: float

    @property
    def interleaved(self) -> bool:
        return min(self.won) > 0


# What the processes do. Each function takes the arguments of a round, and answers with what can be written as JSON.


async def pause() -> None:
    await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))


async def write_first(store: EngineStore, name: str, arguments: Any) -> Any:
    """Try to create one key; the numbers of the callers who did."""

    async def attempt(number: int) -> int | None:
        await pause()
        value = f"{name} {number}".encode()
        try:
            await store.set(SetRequest(partition="first", key=arguments["key"], value=value, options=_FIRST))
        except ETagMismatchError:
            return None
        return number

    outcomes = await asyncio.gather(*(attempt(number) for number in range(arguments["callers"])))
    return [number for number in outcomes if number is not None]


async def increment(store: EngineStore, name: str, arguments: Any) -> Any:
    """Add one as often as told; the numbers that were written."""
    written: list[int] = []

    async def caller() -> None:
        for _ in range(arguments["increments"]):
            while True:
                await pause()
                row = await store.get(GetRequest(partition="counter", key="counter"))
                following = int(row.data or b"0") + 1
                request = SetRequest(
                    partition="counter",
                    key="counter",
                    value=str(following).encode(),
                    etag=row.etag,
                    options=_FIRST,
                )
                try:
                    await store.multi([request])
                except ETagMismatchError:
                    continue
                written.append(following)
                break

    await asyncio.gather(*(caller() for _ in range(arguments["callers"])))
    return written


async def change_some(store: EngineStore, name: str, arguments: Any) -> Any:
    """Multis over a few keys; for each that was carried out what it read, what it wrote, and its etag."""
    carried_out: list[Any] = []
    partition: str = arguments["partition"]

    async def caller(number: int) -> None:
        for _ in range(5):
            await pause()
            keys = random.sample(arguments["keys"], random.randint(2, 4))
            read = {key: (await store.get(GetRequest(partition=partition, key=key))).etag for key in keys}
            written = random.sample(keys, random.randint(1, len(keys)))
            operations: list[Operation] = [
                CheckRequest(partition, key, etag or ABSENT)
                for key, etag in read.items()
                if key not in written
            ]
            operations += [
                SetRequest(
                    partition=partition,
                    key=key,
                    value=f"{name} {number}".encode(),
                    etag=read[key],
                    options=_FIRST,
                )
                for key in written
            ]
            random.shuffle(operations)
            try:
                etag = await store.multi(operations)
            except ETagMismatchError:
                continue
            carried_out.append([f"{name} {number}", read, written, etag])
            return

    await asyncio.gather(*(caller(number) for number in range(arguments["multis"])))
    return carried_out


async def write_if_absent(store: EngineStore, name: str, arguments: Any) -> Any:
    """Write one's own key of each pair if the other's is absent; the pairs in which it was."""
    mine, others = ("a", "b") if name == _NAMES[0] else ("b", "a")

    async def attempt(pair: int) -> int | None:
        place = f"{arguments['round']}/{pair}"
        await pause()
        operations: list[Operation] = [
            CheckRequest("absence", f"{place}/{others}", ABSENT),
            SetRequest(partition="absence", key=f"{place}/{mine}", value=b""),
        ]
        try:
            await store.multi(operations)
        except ETagMismatchError:
            return None
        return pair

    outcomes = await asyncio.gather(*(attempt(pair) for pair in range(arguments["pairs"])))
    return [pair for pair in outcomes if pair is not None]


_WORK: Final[dict[str, Callable[[EngineStore, str, Any], Awaitable[Any]]]] = {
    work.__name__: work for work in (write_first, increment, change_some, write_if_absent)
}


async def work(url: str, name: str) -> None:
    """A process: one line of standard input a round, one line of standard output an answer."""
    async with require(connect(url), EngineStore) as store:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, arguments = json.loads(line)
            print(json.dumps(await _WORK[what](store, name, arguments)), flush=True)


# What watches them.


class Racers:
    """The two processes."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes

    async def round(self, what: Callable[..., object], **arguments: Any) -> list[Any]:
        """Have both do something at once; their answers."""
        line = json.dumps([what.__name__, arguments]).encode() + b"\n"
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(line)
        async with asyncio.timeout(_LONGEST_ROUND_SECONDS):
            return [json.loads(await _line(process)) for process in self._processes]


async def _line(process: Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise RuntimeError(f"a process ended: {(await process.stderr.read()).decode()}")
    return line


@asynccontextmanager
async def racers(url: str) -> AsyncIterator[Racers]:
    """Start both, and wait until their stores are open."""
    async with AsyncExitStack() as stack:
        processes: list[Process] = []
        for name in _NAMES:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--work", name, "--url", url),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                limit=2**26,
                cwd=ROOT,
            )
            stack.push_async_callback(_end, process)
            processes.append(process)
        async with asyncio.timeout(_READY_SECONDS):
            for process in processes:
                await _line(process)
        yield Racers(processes)


async def _end(process: Process) -> None:
    if process.returncode is None:
        assert process.stdin is not None
        process.stdin.close()
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def race_first_writes(racing: Racers, store: EngineStore, scale: Scale) -> tuple[list[int], list[str]]:
    won = [0, 0]
    problems: list[str] = []
    for turn in range(scale.first_writes):
        key = f"{turn}"
        wins = await racing.round(write_first, key=key, callers=scale.callers // 2)
        winners = [
            f"{name} {number}" for name, numbers in zip(_NAMES, wins, strict=True) for number in numbers
        ]
        if len(winners) != 1:
            problems.append(f"first write of {key!r} was won by {winners}")
        row = await store.get(GetRequest(partition="first", key=key))
        if (row.data or b"").decode() not in winners:
            problems.append(f"{key!r} has the value {row.data!r}, the winners are {winners}")
        for index in range(2):
            won[index] += len(wins[index])
    return won, problems


async def race_increments(racing: Racers, store: EngineStore, scale: Scale) -> tuple[list[int], list[str]]:
    answers = await racing.round(increment, callers=scale.callers // 2, increments=scale.increments)
    total = scale.callers // 2 * 2 * scale.increments
    problems: list[str] = []
    row = await store.get(GetRequest(partition="counter", key="counter"))
    if row.data != str(total).encode():
        problems.append(f"{total} increments were acknowledged, the counter is at {row.data!r}")
    if sorted(answers[0] + answers[1]) != list(range(1, total + 1)):
        problems.append(f"{total - len({*answers[0], *answers[1]})} numbers were written twice")
    # Not how many each has done, which is given, but how often the counter went from one to the other.
    by_first = set(answers[0])
    turns = [0, 0]
    for number in range(2, total + 1):
        if (number in by_first) != (number - 1 in by_first):
            turns[number in by_first] += 1
    return turns[::-1], problems


async def race_multis(racing: Racers, store: EngineStore, scale: Scale) -> tuple[list[int], list[str]]:
    won = [0, 0]
    problems: list[str] = []
    for turn in range(scale.multi_rounds):
        keys = [f"key {number}" for number in range(random.choice([4, 8, 16]))]
        partition = f"multis {turn}"
        answers = await racing.round(change_some, partition=partition, keys=keys, multis=scale.multis // 2)
        for index in range(2):
            won[index] += len(answers[index])
        multis = [Multi(*each) for answer in answers for each in answer]
        stored = {key: (await store.get(GetRequest(partition=partition, key=key))).etag for key in keys}
        problems += [f"{partition}: {problem}" for problem in unserialisable(multis, stored)]
    return won, problems


@attrs.frozen
class Multi:
    """One that was carried out."""

    name: str
    read: dict[str, str | None]
    written: list[str]
    etag: str


def unserialisable(multis: Sequence[Multi], stored: dict[str, str | None]) -> list[str]:
    """Why no order of the multis explains what each has read, and what is stored now.

    Two multis may share an etag, as they do on a server that counts commits, but not for one key.
    """
    problems: list[str] = []
    writers: dict[tuple[str, str | None], Multi] = {}
    overwriters: dict[tuple[str, str | None], list[Multi]] = {}
    for multi in multis:
        for key in multi.written:
            if (key, multi.etag) in writers:
                problems.append(f"{multi.name} and {writers[key, multi.etag].name} gave {key} the same etag")
            writers[key, multi.etag] = multi
            overwriters.setdefault((key, multi.read[key]), []).append(multi)
    for key, stored_etag in stored.items():
        chain: list[str | None] = [None]
        while following := overwriters.get((key, chain[-1])):
            if len(following) > 1:
                problems.append(f"{key} was written by {[multi.name for multi in following]} over one etag")
            chain.append(following[0].etag)
            if len(chain) > len(multis) + 1:
                break
        if len(chain) - 1 != sum(key in multi.written for multi in multis):
            problems.append(f"the writes of {key} are not one chain")
        if stored_etag != chain[-1]:
            problems.append(f"{key} has another etag than its last writer was given")
    before: dict[str, set[str]] = {multi.name: set() for multi in multis}
    for multi in multis:
        for key, etag in multi.read.items():
            if etag is not None:
                writer = writers.get((key, etag))
                if writer is None:
                    problems.append(f"{multi.name} read an etag of {key} that nobody was given")
                    continue
                if writer is not multi:
                    before[multi.name].add(writer.name)
            for overwriter in overwriters.get((key, etag), []):
                if overwriter is not multi:
                    before[overwriter.name].add(multi.name)
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        problems.append(f"no order explains {error.args[1]}")
    return problems


async def race_absence(racing: Racers, store: EngineStore, scale: Scale) -> tuple[list[int], list[str]]:
    won = [0, 0]
    problems: list[str] = []
    for turn in range(scale.absence_rounds):
        first, second = await racing.round(write_if_absent, round=turn, pairs=scale.pairs)
        problems += [
            f"pair {turn}/{pair} was won by {'both' if pair in first else 'nobody'}"
            for pair in range(scale.pairs)
            if (pair in first) == (pair in second)
        ]
        found = [item.key async for item in store.scan("absence", f"{turn}/", f"{turn}0")]
        expected = [f"{turn}/{pair}/a" for pair in first] + [f"{turn}/{pair}/b" for pair in second]
        if sorted(found) != sorted(expected):
            problems.append(f"round {turn}: {sorted(found)} are there, {sorted(expected)} were acknowledged")
        won[0] += len(first)
        won[1] += len(second)
    return won, problems


_RACES: Final = {
    "first writes": race_first_writes,
    "increments": race_increments,
    "multis": race_multis,
    "absence": race_absence,
}


async def run_races(url: str, scale: Scale) -> list[Outcome]:
    """All races on one empty database."""
    outcomes: list[Outcome] = []
    async with require(connect(url), EngineStore) as store, racers(url) as racing:
        for name, race in _RACES.items():
            began = time.monotonic()
            won, problems = await race(racing, store, scale)
            outcomes.append(Outcome(name, (won[0], won[1]), tuple(problems), time.monotonic() - began))
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    add_kinds(parser, ALL_KINDS)
    parser.add_argument("--url", help="an empty database of one's own, in place of the kinds")
    parser.add_argument("--work", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        asyncio.run(work(arguments.url, arguments.work))
        return
    scale = QUICK if arguments.quick else FULL
    found: dict[str, list[Outcome]] = {}
    if arguments.url:
        found["url"] = asyncio.run(run_races(arguments.url, scale))
    else:
        for kind in arguments.kinds:
            try:
                with database_of(kind) as url:
                    found[kind] = asyncio.run(run_races(url, scale))
            except MissingServerError as error:
                print(f"{kind}: {error}")
    rows: list[list[object]] = [["database", "race", "A won", "B won", "violations", "seconds"]]
    rows += [
        [kind, each.race, *each.won, len(each.problems), f"{each.seconds:.1f}"]
        for kind, outcomes in found.items()
        for each in outcomes
    ]
    print(table(rows))
    everything = [(kind, each) for kind, outcomes in found.items() for each in outcomes]
    for kind, each in everything:
        for problem in each.problems[:20]:
            print(f"{kind}, {each.race}: {problem}")
        if not each.interleaved:
            print(f"{kind}, {each.race}: one process has won nothing, so this shows little")
    good = found and all(
        not each.problems and (arguments.quick or each.interleaved) for _, each in everything
    )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
