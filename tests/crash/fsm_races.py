"""Processes send events to the same configured machines at once, and are killed while they do.

    python tests/crash/fsm_races.py                              every kind of store, 4 x 1 000 events, 50 machines
    python tests/crash/fsm_races.py --quick --stores redis:valkey sqlite
    python tests/crash/fsm_races.py --kills 10                   with SIGKILL, and successors that send all again

A store `redis:<server>` is the one with the key layout of other programs; any other is the storage contract on
that database. Each process also sends some of the events of its neighbour, so that they come twice. Afterwards:

* every event has exactly one outcome, and whoever sent it was told that one;
* the history of each machine has each event that moved it once, and is a path through its configuration that
  begins at the start and ends in the machine's state;
* the machine is in the set of its state and in no other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import attrs

# A script's own directory is on the path; the package that it belongs to is two levels up.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hsm.fsm import (  # noqa: E402  after the path
    DatabaseOptions,
    DatabaseStore,
    StoreManager,
    StoreTimeoutError,
    TooManyAttemptsError,
    new_state_machine,
    source_of,
)
from hsm.fsm.redis import RedisStore  # noqa: E402
from persistence.proto.statemachine_pb2 import (  # noqa: E402
    Configuration,
    Event,
    EventOutcome,
    FiniteStateMachine,
    Transition,
)
from tests.crash._kinds import ALL_KINDS, database_of, table  # noqa: E402
from tests.support.fsm.configurations import configuration  # noqa: E402
from tests.support.raw_redis import RawRedis  # noqa: E402
from tests.support.servers import MissingServerError, running  # noqa: E402

STORES: Final = (*ALL_KINDS, "redis:valkey", "redis:redis", "redis:valkey-cluster")
_TIMEOUT: Final = timedelta(seconds=20)
_READY_SECONDS: Final = 60
_NAME: Final = "races"
_STATES: Final = 5


def races() -> Configuration:
    """A ring with a short cut, so that about half of all events are refused."""
    ring = [(f"s{number}", f"s{(number + 1) % _STATES}", "next") for number in range(_STATES)]
    return configuration([*ring, ("s0", "s2", "jump"), ("s3", "s3", "stay")], name=_NAME)


@attrs.frozen
class Scale:
    """How much is done.

    Attributes:
        processes: at once.
        events: that each has of its own.
        machines: that all of them share.
        callers: of each process, at once.
        kills: how many processes are killed.
    """

    processes: int = 4
    events: int = 1000
    machines: int = 50
    callers: int = 16
    kills: int = 0


@attrs.frozen
class Outcome:
    """What came of it."""

    accepted: int
    refused: int
    kills: int
    seconds: float
    problems: Sequence[str]


# What a process does.


def machine_of(event_id: str, machines: int) -> str:
    """Which machine an event is for: the same whoever sends it."""
    return str(random.Random(event_id).randrange(machines))


def event_of(event_id: str) -> Event:
    """An event: the same whoever sends it."""
    name = random.Random(f"{event_id} name").choice(["next", "next", "jump", "stay"])
    event = Event(event_id=event_id, transition=Transition(event=name))
    event.timestamp.FromSeconds(1_800_000_000)
    return event


def open_store(where: str) -> StoreManager:
    """A store, by what stands behind `--at`."""
    kind, _, place = where.partition(" ")
    if kind == "database":
        return DatabaseStore(place, options=DatabaseOptions(timeout=_TIMEOUT, max_attempts=1000))
    if kind == "cluster":
        return RedisStore(place, is_cluster=True, timeout=_TIMEOUT)
    database, _, address = place.partition(" ")
    return RedisStore(address, db=int(database), timeout=_TIMEOUT)


async def work(where: str, number: int, scale: Scale) -> None:
    """A process: for each event that it sends one line of standard output with the outcome."""
    own = [f"{number}-{each}" for each in range(scale.events)]
    neighbour = (number + 1) % scale.processes
    others = [f"{neighbour}-{each}" for each in range(0, scale.events, 5)]
    ids = own + others
    random.shuffle(ids)
    async with open_store(where) as store:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def caller() -> None:
            while ids:
                event_id = ids.pop()
                outcome = await _outcome(store, event_id, scale)
                print(json.dumps([event_id, outcome.SerializeToString().hex()]), flush=True)

        async with asyncio.TaskGroup() as group:
            for _ in range(scale.callers):
                group.create_task(caller())


async def _outcome(store: StoreManager, event_id: str, scale: Scale) -> EventOutcome:
    while True:
        try:
            return await store.tx_process_event(
                machine_of(event_id, scale.machines), _NAME, event_of(event_id)
            )
        except (TooManyAttemptsError, StoreTimeoutError):
            await asyncio.sleep(random.uniform(0, 0.05))


# What watches them.


@attrs.define
class Racer:
    """A process, and what it was told."""

    number: int
    process: Process
    told: list[tuple[str, str]] = attrs.field(factory=list)
    reader: asyncio.Task[None] | None = None

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.endswith(b"\n"):  # else it was killed while it wrote
                event_id, outcome = json.loads(line)
                self.told.append((event_id, outcome))


@asynccontextmanager
async def racer(where: str, number: int, scale: Scale) -> AsyncIterator[Racer]:
    """Start a process, and wait until its store is open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--at", where, "--number", str(number)),
        *("--scale", json.dumps(attrs.asdict(scale))),
        stdin=PIPE,
        stdout=PIPE,
        limit=2**26,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_READY_SECONDS):
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"process {number} ended")
        yield Racer(number, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run_race(where: str, scale: Scale) -> Outcome:
    """A race on an empty place."""
    begin = time.monotonic()
    async with open_store(where) as store:
        await store.put_config(races())
        start = new_state_machine(races())
        for number in range(scale.machines):
            await store.put_state_machine(str(number), start, expected_revision=0)
    told: list[tuple[str, str]] = []
    kills = 0
    async with AsyncExitStack() as stack:
        running_now = [
            await stack.enter_async_context(racer(where, number, scale)) for number in range(scale.processes)
        ]
        for each in running_now:
            _go(each)
        while kills < scale.kills and any(each.process.returncode is None for each in running_now):
            await asyncio.sleep(random.uniform(0.1, 0.4))
            victim = random.choice(running_now)
            if victim.process.returncode is None:
                victim.process.kill()
                kills += 1
                await _end(victim)
                told += victim.told
                running_now.remove(victim)
                # Its successor knows nothing of what it has done, and sends everything again.
                successor = await stack.enter_async_context(racer(where, victim.number, scale))
                _go(successor)
                running_now.append(successor)
        for each in running_now:
            await _end(each)
            told += each.told
            if each.process.returncode:
                raise RuntimeError(f"process {each.number} ended with status {each.process.returncode}")
    async with open_store(where) as store:
        accepted, refused, problems = await _judge(store, scale, told)
    return Outcome(accepted, refused, kills, time.monotonic() - begin, problems)


def _go(each: Racer) -> None:
    assert each.process.stdin is not None
    each.process.stdin.write(b"\n")
    each.reader = asyncio.create_task(each.read())


async def _end(each: Racer) -> None:
    assert each.reader is not None
    await each.reader
    await each.process.wait()


async def _judge(
    store: StoreManager, scale: Scale, told: Sequence[tuple[str, str]]
) -> tuple[int, int, list[str]]:
    """How many events moved a machine, how many were refused, and what is wrong."""
    problems: list[str] = []
    answers: dict[str, str] = {}
    for event_id, answer in told:
        if answers.setdefault(event_id, answer) != answer:
            problems.append(f"event {event_id} has two outcomes")
    ids = {f"{number}-{each}" for number in range(scale.processes) for each in range(scale.events)}
    if missing := sorted(ids - set(answers)):
        problems.append(f"nobody was told of {len(missing)} events: {missing[:5]}")
    moved: set[str] = set()
    for event_id in sorted(ids):
        outcome = await store.get_outcome_for_event(event_id, _NAME)
        if answers.get(event_id, outcome.SerializeToString().hex()) != outcome.SerializeToString().hex():
            problems.append(f"event {event_id} has another outcome than was told")
        if outcome.code == EventOutcome.Ok:
            moved.add(event_id)
    members = {state: Counter(await store.get_all_in_state(_NAME, state)) for state in races().states}
    seen: Counter[str] = Counter()
    for number in range(scale.machines):
        machine = await store.get_state_machine(str(number), _NAME)
        seen.update(event.event_id for event in machine.history)
        problems += [f"machine {number} {problem}" for problem in _path_problems(machine)]
        states = [state for state, ids_ in members.items() for _ in range(ids_[str(number)])]
        if states != [machine.state]:
            problems.append(f"machine {number} is in {machine.state}, and in the sets of {states}")
    if twice := sorted(event_id for event_id, count in seen.items() if count > 1):
        problems.append(f"{len(twice)} events moved a machine twice: {twice[:5]}")
    if set(seen) != moved:
        problems.append(f"histories and outcomes disagree: {sorted(set(seen) ^ moved)[:5]}")
    return len(moved), len(ids) - len(moved), problems


def _path_problems(machine: FiniteStateMachine) -> Iterator[str]:
    configuration_ = races()
    moves = {(source_of(each), each.event): each.to for each in configuration_.transitions}
    state = configuration_.starting_state
    for event in machine.history:
        source = source_of(event.transition)
        if source != state or moves.get((source, event.transition.event)) != event.transition.to:
            yield f"made a move that there is not: {event.transition}"
        state = event.transition.to
    if state != machine.state:
        yield f"is in {machine.state}, and its history ends in {state}"
    if machine.revision != len(machine.history) + 1:
        yield f"is at revision {machine.revision} after {len(machine.history)} events"


@contextmanager
def place_of(kind: str) -> Iterator[str]:
    """An empty place for a kind of store."""
    layout, _, server_kind = kind.partition(":")
    if layout != "redis" or not server_kind:
        with database_of(kind) as url:
            yield f"database {url}"
        return
    with running(server_kind) as server:
        raw = RawRedis(server)
        raw.clear()
        yield place_on_redis(raw)


def place_on_redis(raw: RawRedis) -> str:
    """A database as processes are told of it."""
    return f"cluster {raw.address}" if raw.is_cluster else f"server {raw.database} {raw.address}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the events")
    parser.add_argument("--kills", type=int, default=0, help="how many processes are killed")
    parser.add_argument(
        "--stores",
        nargs="+",
        choices=STORES,
        default=STORES,
        metavar="STORE",
        help=f"some of {', '.join(STORES)}",
    )
    parser.add_argument("--at", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scale", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.at:
        given: dict[str, Any] = json.loads(arguments.scale)
        asyncio.run(work(arguments.at, arguments.number, Scale(**given)))
        return
    scale = Scale(events=100 if arguments.quick else 1000, kills=arguments.kills)
    rows: list[list[object]] = [["store", "moved", "refused", "kills", "violations", "seconds"]]
    problems: list[str] = []
    for kind in arguments.stores:
        try:
            with place_of(kind) as where:
                outcome = asyncio.run(run_race(where, scale))
        except MissingServerError as error:
            print(f"{kind}: {error}")
            continue
        rows.append(
            [
                kind,
                outcome.accepted,
                outcome.refused,
                outcome.kills,
                len(outcome.problems),
                f"{outcome.seconds:.1f}",
            ]
        )
        problems += [f"{kind}: {problem}" for problem in outcome.problems[:20]]
    print(table(rows))
    print("\n".join(problems))
    sys.exit(1 if problems or len(rows) == 1 else 0)


if __name__ == "__main__":
    main()
