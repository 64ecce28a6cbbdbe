"""Kill a process between any two commands that it sends to a cluster, and see that nothing is lost.

    python tests/crash/fsm_cluster_kills.py           every command of everything that is written, in two orders
    python tests/crash/fsm_cluster_kills.py --quick   in one order

On a cluster the keys of one machine lie in several slots, so that what belongs together is written by several
commands. A process that does one thing is killed with SIGKILL after its first command, another one after its
second, and so on until one gets through. After each, before anybody repairs anything:

* the machine is as it was or as it is to be, and `get_all_in_state` finds it in the set of its state alone;
* to others who look into the sets, it is at least in the set of its state;
* an event that has moved the machine, and was accepted, has its outcome.

Then the event is delivered again, or pending ones are taken up, and everything is as if nothing had happened.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import attrs

# A script's own directory is on the path; the package that it belongs to is two levels up.
ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hsm.fsm import (  # noqa: E402  after the path
    AlreadyExistsError,
    NotFoundError,
    OutcomePendingError,
    RedisStore,
    RedisStoreOptions,
    new_state_machine,
)
from persistence.proto.statemachine_pb2 import (  # noqa: E402
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
    Transition,
)
from persistence.stores.redis.dispatch import Request  # noqa: E402
from tests.crash._kinds import table  # noqa: E402
from tests.support.fsm.configurations import configuration, orders  # noqa: E402
from tests.support.raw_redis import RawRedis  # noqa: E402
from tests.support.servers import MissingServerError, Server, running  # noqa: E402

_TIMEOUT: Final = timedelta(seconds=20)
_MOST_COMMANDS: Final = 60
_NAME: Final = "orders"


def open_store(address: str) -> RedisStore:
    return RedisStore(address, True, timeout=_TIMEOUT, options=RedisStoreOptions(notify=True))


def event_of(name: str, machine: str) -> Event:
    event = Event(event_id=f"event of {machine}", transition=Transition(event=name))
    event.timestamp.FromSeconds(1_800_000_000)
    return event


def request_of(name: str, machine: str) -> EventRequest:
    return EventRequest(config=_NAME, id=machine, event=event_of(name, machine))


# What a process does before it is killed.


async def send(store: RedisStore, machine: str) -> None:
    await store.tx_process_event(machine, _NAME, event_of("accept", machine))


async def accept_and_process(store: RedisStore, machine: str) -> None:
    await store.accept_event(request_of("accept", machine))
    await store.process_events(await store.pending_events(machine, _NAME))


async def accept_and_refuse(store: RedisStore, machine: str) -> None:
    await store.accept_event(request_of("deliver", machine))
    await store.process_events(await store.pending_events(machine, _NAME))


async def replace(store: RedisStore, machine: str) -> None:
    await store.put_state_machine(machine, FiniteStateMachine(config_id="orders:v1", state="shipped"))


async def create(store: RedisStore, machine: str) -> None:
    await store.put_state_machine(f"{machine} new", new_state_machine(orders()))


async def delete(store: RedisStore, machine: str) -> None:
    await store.delete_state_machine(machine, _NAME)


async def configure(store: RedisStore, machine: str) -> None:
    await store.put_config(configuration([("a", "b", "go")], name=machine))


ACTIONS: Final[dict[str, Callable[[RedisStore, str], Awaitable[None]]]] = {
    action.__name__: action
    for action in (send, accept_and_process, accept_and_refuse, replace, create, delete, configure)
}


async def act(address: str, action: str, machine: str, *, commands: int, backwards: bool) -> None:
    """Do something, and be killed after so many commands."""
    async with open_store(address) as store:
        await store.get_config("orders:v1")
        await store.get_all_versions(_NAME)
        connections = store._opened.connections
        ask, left = connections.ask, commands

        async def one_by_one(requests: Sequence[Request]) -> list[object]:
            nonlocal left
            replies: dict[int, object] = {}
            for number in reversed(range(len(requests))) if backwards else range(len(requests)):
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                (replies[number],) = await ask([requests[number]])
            return [replies[number] for number in range(len(requests))]

        connections.ask = one_by_one  # type: ignore[method-assign,assignment]  # as said above
        await ACTIONS[action](store, machine)


def nursery(address: str) -> None:
    """For each line of standard input, a process of its own; how it ended goes to standard output."""
    for line in sys.stdin:
        action, machine, commands, backwards = json.loads(line)
        child = os.fork()
        if not child:
            asyncio.run(act(address, action, machine, commands=commands, backwards=backwards))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


# What is seen afterwards.


@attrs.define
class Watcher:
    """Looks at what a process has left behind."""

    raw: RawRedis
    problems: list[str] = attrs.field(factory=list)
    where: str = ""

    def expect(self, holds: object, text: str) -> None:
        if not holds:
            self.problems.append(f"{self.where}: {text}")

    async def look(self, action: str, machine: str) -> None:
        async with open_store(self.raw.address) as store:
            if action == "configure":
                await self._look_at_configuration(store, machine)
                return
            await self._look_at_machine(store, f"{machine} new" if action == "create" else machine)
            if action.startswith("accept"):
                await self._look_at_accepted(store, machine)
            await self._set_right(store, action, machine)

    async def _look_at_configuration(self, store: RedisStore, name: str) -> None:
        made = configuration([("a", "b", "go")], name=name)
        with suppress(AlreadyExistsError):
            await store.put_config(made)
        self.expect(await store.get_config(f"{name}:v1") == made, "the configuration is another one")
        self.expect(await store.get_all_versions(name) == [f"{name}:v1"], "its version is not listed")
        self.expect(name in await store.get_all_configs(), "its name is not listed")

    async def _look_at_machine(self, store: RedisStore, machine: str) -> None:
        try:
            state = (await store.get_state_machine(machine, _NAME)).state
        except NotFoundError:
            state = ""
        raw_states = self._raw_states(machine)
        self.expect(not state or state in raw_states, f"in {state!r}, to others in {raw_states}")
        found = [each for each in orders().states if machine in await store.get_all_in_state(_NAME, each)]
        self.expect(found == [state] * bool(state), f"in {state!r}, found in {found}")

    async def _look_at_accepted(self, store: RedisStore, machine: str) -> None:
        history = (await store.get_state_machine(machine, _NAME)).history
        if not history:
            return
        try:
            outcome = await store.get_outcome_for_event(f"event of {machine}", _NAME)
        except NotFoundError as error:
            self.expect(False, f"moved, and no outcome: {error}")
        else:
            self.expect(outcome.code == EventOutcome.Ok, f"moved, and the outcome is {outcome}")

    async def _set_right(self, store: RedisStore, action: str, machine: str) -> None:
        """Do what somebody does who comes later."""
        expected = "start"
        if action in {"send", "accept_and_process"}:
            expected = "accepted"
            if action == "send":
                outcome = await store.tx_process_event(machine, _NAME, event_of("accept", machine))
                self.expect(outcome.code == EventOutcome.Ok, f"after a second delivery: {outcome}")
        if action.startswith("accept"):
            await self._take_up(store, machine, "accept" if expected == "accepted" else "deliver")
        if action == "replace":
            await ACTIONS[action](store, machine)
            expected = "shipped"
        if action == "create":
            machine = f"{machine} new"
            await store.put_state_machine(machine, new_state_machine(orders()))
        if action == "delete":
            with suppress(NotFoundError):
                await store.delete_state_machine(machine, _NAME)
            expected = ""
        self.expect(
            self._raw_states(machine) == [expected] * bool(expected), f"left in {self._raw_states(machine)}"
        )
        if expected:
            found = await store.get_state_machine(machine, _NAME)
            self.expect(found.state == expected, f"in {found.state!r} in the end")
            moves = 1 if expected == "accepted" else 0
            self.expect(len(found.history) == moves, f"{len(found.history)} events in the history")
        journal = self.raw.execute("HKEYS", f"hsm:{{fsm:{_NAME}#{machine}}}:journal")
        self.expect(journal in ([], [b"turn"]), f"the journal has {journal!r}")

    async def _take_up(self, store: RedisStore, machine: str, name: str) -> None:
        """Accept again what was perhaps not accepted, and process what is pending, as a new process would."""
        await store.accept_event(request_of(name, machine))
        waiting = [id_ async for _, id_ in store.pending_machines()]
        pending = await store.pending_events(machine, _NAME)
        self.expect((machine in waiting) == bool(pending), f"{len(pending)} events pending, among {waiting}")
        await store.process_events(pending)
        self.expect(not await store.pending_events(machine, _NAME), "events stay pending")
        waiting = [id_ async for _, id_ in store.pending_machines()]
        self.expect(machine not in waiting, "it waits although nothing is pending")
        try:
            outcome = await store.get_outcome_for_event(f"event of {machine}", _NAME)
        except OutcomePendingError:
            self.expect(False, "the event is still pending")
            return
        code = EventOutcome.Ok if name == "accept" else EventOutcome.TransitionNotAllowed
        self.expect(outcome.code == code, f"the outcome is {outcome}")
        told = [
            each async for each in store.notifications() if each.response.event_id == f"event of {machine}"
        ]
        self.expect(len(told) == (name != "accept"), f"{len(told)} notifications")
        self.expect(
            self.raw.execute("HGET", f"hsm:fsm:{{{_NAME}}}:accepted", f"event of {machine}") is None,
            "the event is still noted as accepted",
        )

    def _raw_states(self, machine: str) -> list[str]:
        return [
            state for state in orders().states if machine in self.raw.members(f"fsm:{_NAME}:state#{state}")
        ]


@contextmanager
def nursed(address: str) -> Iterator[Callable[[str, str, int, bool], bool]]:
    """Starts processes; says of each whether it was killed."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--nursery", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def start(action: str, machine: str, commands: int, backwards: bool) -> bool:
        stdin.write(json.dumps([action, machine, commands, backwards]) + "\n")
        stdin.flush()
        status = stdout.readline().strip()
        if status not in {"0", str(-signal.SIGKILL)}:
            raise RuntimeError(f"a process ended with status {status}")
        return status != "0"

    try:
        yield start
    finally:
        stdin.close()
        process.wait()
        stdout.close()


async def _prepare(address: str, machine: str) -> None:
    async with open_store(address) as store:
        with suppress(AlreadyExistsError):
            await store.put_config(orders())
        await store.put_state_machine(machine, new_state_machine(orders()), expected_revision=0)


def run_kills(
    server: Server, *, actions: Sequence[str] = tuple(ACTIONS), backwards: bool = False
) -> tuple[dict[str, int], list[str]]:
    """How often each action was killed until it got through, and what was wrong."""
    watcher = Watcher(RawRedis(server))
    watcher.raw.clear()
    kills: dict[str, int] = {}
    with nursed(watcher.raw.address) as start:
        for action in actions:
            for commands in range(_MOST_COMMANDS):
                machine = f"{action}-{commands}"
                watcher.where = f"{action} killed after {commands} commands"
                asyncio.run(_prepare(watcher.raw.address, machine))
                killed = start(action, machine, commands, backwards)
                asyncio.run(watcher.look(action, machine))
                if not killed:
                    kills[action] = commands
                    break
            else:
                raise RuntimeError(f"{action} does not come to an end")
    return kills, watcher.problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="in one order of the commands")
    parser.add_argument("--nursery", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.nursery:
        nursery(arguments.nursery)
        return
    rows: list[list[object]] = [["order", "action", "kills"]]
    problems: list[str] = []
    try:
        with running("valkey-cluster") as server:
            for backwards in (False,) if arguments.quick else (False, True):
                kills, found = run_kills(server, backwards=backwards)
                order = "backwards" if backwards else "forwards"
                rows += [[order, action, count] for action, count in kills.items()]
                problems += [f"{order}, {problem}" for problem in found]
    except MissingServerError as error:
        print(error)
        sys.exit(1)
    print(table(rows))
    print(f"{len(problems)} violations", *problems[:50], sep="\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
