"""Processes accept events for the same configured machines, and are killed: each has one outcome, and its turn.

    python tests/crash/fsm_processing.py                                4 processes, 1 000 events each, 50 machines; and kills
    python tests/crash/fsm_processing.py --quick --stores sqlite redis:valkey  less of everything
    python tests/crash/fsm_processing.py --events 10000 --kills 50

Each process sends its events over several streams: half of them accept events durably and wait for the processor, the
others send them in one transaction. Some events are refused, some come again, some come from two processes. With kills,
a process that dies by SIGKILL is started again, and sends what it was not told of. In the end a new process takes up
what is pending, and everything is looked at:

* every event that was acknowledged is there, and has an outcome; nothing is pending.
* every event with the outcome Ok is in the history of its machine exactly once, where its revision says; others are not.
* every history is a path from the starting state to the state of the machine.
* every machine is in the set of its state and in no other.
* events that one stream sent to one machine are in the order in which they were accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hsm.fsm import (  # noqa: E402
    EventProcessor,
    StoreManager,
    new_state_machine,
    source_of,
)
from hsm.fsm.errors import NotFoundError, TooManyAttemptsError  # noqa: E402
from persistence.proto.statemachine_pb2 import (  # noqa: E402
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
    Transition,
)
from tests.crash._kinds import table  # noqa: E402
from tests.crash.fsm_races import STORES, open_store, place_of  # noqa: E402
from tests.support.fsm.configurations import counter  # noqa: E402
from tests.support.servers import MissingServerError  # noqa: E402

_NAME: Final = "counters"
_STORES: Final = ("sqlite", "postgresql", "valkey", "redis:valkey")
_QUICK_STORES: Final = ("sqlite", "redis:valkey")
_STREAMS: Final = 8
_STATES: Final = 5
_AGAIN: Final = 0.05
_SHARED: Final = 0.02
_NAMES: Final = ("next", "next", "next", "stay", "unknown")
_LONGEST_SECONDS: Final = 300


@attrs.frozen
class Scale:
    """How much happens."""

    processes: int = 4
    events: int = 1000
    machines: int = 50
    kills: int = 0


@attrs.define
class Findings:
    """What was seen in the end."""

    acknowledged: int = 0
    moved: int = 0
    refused: int = 0
    kills: int = 0
    seconds: float = 0
    problems: list[str] = attrs.field(factory=list)


def configuration_of() -> FiniteStateMachine:
    """A machine at the start."""
    return new_state_machine(counter(states=_STATES))


# What the processes do.


@attrs.frozen
class Plan:
    """The event of one process with one number: the same whenever it is asked for."""

    event_id: str
    machine: str
    name: str

    @classmethod
    def of(cls, process: int, number: int, machines: int) -> Plan:
        chance = random.Random(f"{process} {number}")
        stream = number % _STREAMS
        # A stream has machines of its own, so that what it sends to one of them has an order.
        machine = stream + _STREAMS * chance.randrange(machines // _STREAMS)
        shared = chance.random() < _SHARED
        name = chance.choice(_NAMES)
        if shared:
            return cls(f"shared-{number}", str(number % machines), "stay")
        return cls(f"{process}-{number:06}", str(machine), name)


async def work(url: str, process: int, start: list[int], scale: Scale) -> None:
    """Send the events of a process, each stream from where it stands; say which are acknowledged."""
    async with open_store(url) as store, EventProcessor(store) as processor:
        await asyncio.gather(
            *(stream(store, processor, process, number, first, scale) for number, first in enumerate(start))
        )


async def stream(
    store: StoreManager, processor: EventProcessor, process: int, stream: int, first: int, scale: Scale
) -> None:
    for number in range(first, scale.events, _STREAMS):
        plan = Plan.of(process, number, scale.machines)
        times = 2 if random.random() < _AGAIN else 1
        for _ in range(times):
            request = EventRequest(
                event=Event(event_id=plan.event_id, transition=Transition(event=plan.name)),
                config=_NAME,
                id=plan.machine,
            )
            if stream % 2 == 0:
                await processor.process(request)
            else:
                await send(store, request)
        sys.stdout.write(f"{stream} {number}\n")
        sys.stdout.flush()


async def send(store: StoreManager, request: EventRequest) -> None:
    while True:
        try:
            await store.tx_process_event(request.id, request.config, request.event)
        except TooManyAttemptsError:
            continue
        return


# What the parent does.


class Worker:
    """A process that sends events, and is started again when it was killed."""

    def __init__(self, url: str, number: int, scale: Scale) -> None:
        self._url = url
        self._number = number
        self._scale = scale
        self._process: Process | None = None
        self.next = list(range(_STREAMS))
        self.acknowledged: set[int] = set()

    async def run(self) -> None:
        """Return when all its events are acknowledged, however often it dies on the way."""
        while len(self.acknowledged) < self._scale.events:
            arguments = [
                "--work",
                self._url,
                "--number",
                str(self._number),
                "--events",
                str(self._scale.events),
            ]
            arguments += ["--machines", str(self._scale.machines), "--start", *map(str, self.next)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__)), *arguments, stdout=PIPE, cwd=ROOT
            )
            self._process = process
            assert process.stdout is not None
            async for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # it died in the middle of a word
                stream, number = map(int, line.split())
                self.acknowledged.add(number)
                self.next[stream] = number + _STREAMS
            code = await process.wait()
            if code not in {0, -9}:
                raise RuntimeError(f"process {self._number} has ended with {code}")

    def kill(self) -> bool:
        """Kill it, if it runs."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        process.kill()
        return True


async def run(url: str, scale: Scale) -> Findings:
    """The whole story on one empty database."""
    began = time.monotonic()
    findings = Findings()
    async with open_store(url) as store:
        await store.put_config(counter(states=_STATES))
        for machine in range(scale.machines):
            await store.put_state_machine(str(machine), configuration_of())
    workers = [Worker(url, number, scale) for number in range(scale.processes)]
    async with asyncio.timeout(_LONGEST_SECONDS):
        killing = asyncio.create_task(kill_some(workers, scale, findings))
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker.run())
        finally:
            killing.cancel()
            for worker in workers:
                worker.kill()
    async with open_store(url) as store:
        async with EventProcessor(store):
            pass
        await look(store, scale, workers, findings)
    findings.seconds = time.monotonic() - began
    return findings


async def kill_some(workers: list[Worker], scale: Scale, findings: Findings) -> None:
    """Kill processes that have got on a bit since the last one was killed."""
    total = scale.events * scale.processes
    for number in range(scale.kills):
        mark = total * (number + 1) // (scale.kills + 1)
        while sum(len(worker.acknowledged) for worker in workers) < mark:  # noqa: ASYNC110  several sources
            await asyncio.sleep(0.005)
        await asyncio.sleep(random.uniform(0, 0.05))
        alive = random.sample(workers, len(workers))
        findings.kills += any(worker.kill() for worker in alive)


async def look(store: StoreManager, scale: Scale, workers: list[Worker], findings: Findings) -> None:
    """Everything, when nobody writes any more."""
    problems = findings.problems
    async for name, id_ in store.pending_machines():
        problems.append(f"machine {id_} of {name} still has pending events")
    outcomes: dict[str, EventOutcome] = {}
    for number, worker in enumerate(workers):
        for event in sorted(worker.acknowledged):
            plan = Plan.of(number, event, scale.machines)
            findings.acknowledged += 1
            try:
                outcomes[plan.event_id] = await store.get_outcome_for_event(plan.event_id, _NAME)
                await store.get_event(plan.event_id, _NAME)
            except NotFoundError as error:
                problems.append(f"event {plan.event_id} was acknowledged: {error}")
    findings.moved = sum(outcome.code == EventOutcome.Ok for outcome in outcomes.values())
    findings.refused = len(outcomes) - findings.moved
    sets = {state: await store.get_all_in_state(_NAME, state) for state in counter(states=_STATES).states}
    seen: Counter[str] = Counter()
    for machine in range(scale.machines):
        read = await store.get_state_machine(str(machine), _NAME)
        problems += check_machine(str(machine), read, outcomes, seen)
        found = [state for state, ids in sets.items() if str(machine) in ids]
        if found != [read.state]:
            problems.append(f"machine {machine} is in state {read.state} and in the sets of {found}")
    for event_id, outcome in outcomes.items():
        expected = int(outcome.code == EventOutcome.Ok)
        if seen[event_id] != expected:
            problems.append(f"event {event_id} ({outcome.code}) is {seen[event_id]} times in histories")


def check_machine(
    machine: str, read: FiniteStateMachine, outcomes: dict[str, EventOutcome], seen: Counter[str]
) -> list[str]:
    """What is wrong with a machine's history."""
    problems: list[str] = []
    state = "s0"
    order: dict[str, list[str]] = defaultdict(list)
    for number, event in enumerate(read.history):
        seen[event.event_id] += 1
        if source_of(event.transition) != state:
            problems.append(
                f"machine {machine}: {event.event_id} leaves {source_of(event.transition)}, not {state}"
            )
        state = event.transition.to
        outcome = outcomes.get(event.event_id)
        if outcome is None:
            problems.append(f"machine {machine}: nobody was told of {event.event_id}")
        elif (outcome.id, outcome.revision) != (machine, number + 2):
            problems.append(
                f"machine {machine}: {event.event_id} is number {number}; its outcome is {outcome}"
            )
        sender, _, turn = event.event_id.partition("-")
        if sender != "shared":
            order[sender].append(turn)
    if (state, read.revision) != (read.state, len(read.history) + 1):
        problems.append(
            f"machine {machine} is in {read.state} at {read.revision}; its history ends in {state}"
        )
    problems += [
        f"machine {machine}: the events of {sender} are in the order {turns}"
        for sender, turns in order.items()
        if turns != sorted(turns)
    ]
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--events", type=int, default=1000, help="of each process")
    parser.add_argument("--machines", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10, help="in the second run")
    parser.add_argument("--quick", action="store_true", help="100 events each, and 2 kills, on two stores")
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument(
        "--stores",
        nargs="+",
        choices=STORES,
        metavar="STORE",
        help=f"some of {', '.join(STORES)}; left out, {', '.join(_STORES)}; a `redis:` has the keys of other programs",
    )
    arguments = parser.parse_args()
    events, kills = (100, 2) if arguments.quick else (arguments.events, arguments.kills)
    if arguments.work:
        scale = Scale(events=arguments.events, machines=arguments.machines)
        asyncio.run(work(arguments.work, arguments.number, arguments.start, scale))
        return
    rows: list[list[object]] = [
        [*["database", "kills", "acknowledged", "moved", "refused", "problems", "seconds"]]
    ]
    problems: list[str] = []
    for kind in arguments.stores or (_QUICK_STORES if arguments.quick else _STORES):
        for deaths in (0, kills):
            scale = Scale(arguments.processes, events, arguments.machines, deaths)
            try:
                with place_of(kind) as place:
                    found = asyncio.run(run(place, scale))
            except MissingServerError as error:
                print(f"{kind}: {error}")
                break
            counts = [found.acknowledged, found.moved, found.refused, len(found.problems)]
            rows.append([kind, found.kills, *counts, f"{found.seconds:.0f}"])
            problems += [f"{kind}: {problem}" for problem in found.problems]
    print(table(rows))
    print("\n".join(problems[:20]))
    sys.exit(1 if problems or len(rows) == 1 else 0)


if __name__ == "__main__":
    main()
