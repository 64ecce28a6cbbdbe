"""Kill writers and subscribers of a journal at random moments: every event reaches every subscriber once, in order.

    python tests/crash/journal_kills.py [--quick] [--kills N]            on SQLite
    python tests/crash/journal_kills.py --url-kind postgresql            on a server that is started for it

Three processes commit to a few histories without a version, and say so when a commit is acknowledged. Three others
are projections of the feed, each of its own name, which note every item under the next number. One of each is killed
again and again, and started anew. In the end the histories have to be chains of everything acknowledged, all
subscribers have to have noted the same items, each once and in the order of the feed, and nothing is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import persistence  # noqa: E402
from persistence.journal import (  # noqa: E402
    RETRY_NO_VC,
    FeedItem,
    Journal,
    JournalOptions,
    NewEvent,
    Output,
    Projection,
    ProjectionOptions,
    RetryNoVCError,
)
from persistence.proto.nogevents_pb2 import Event as EventMessage  # noqa: E402
from tests.crash._kinds import ALL_KINDS, database_of  # noqa: E402

HISTORIES: Final = [uuid5(UUID(int=0), str(number)) for number in range(5)]
WRITERS: Final = ("writer-0", "writer-1", "writer-2")
SUBSCRIBERS: Final = ("subscriber-0", "subscriber-1", "subscriber-2")
OPTIONS: Final = JournalOptions(hash_chain=True, poll_interval=timedelta(milliseconds=50))


async def write(url: str, name: str) -> None:
    """Commit events with growing numbers to each history, and say so."""
    async with (
        persistence.connect(url) as store,
        Journal(store, "kills", options=OPTIONS) as journal,
        asyncio.TaskGroup() as group,
    ):
        for index in range(len(HISTORIES)):
            group.create_task(keep_writing(journal, name, index))


async def keep_writing(journal: Journal, name: str, index: int) -> None:
    history = HISTORIES[index]
    messages = [event.message() async for event in journal.find(history)]
    number = max([message.status_code for message in messages if message.sender == name], default=0)
    while True:
        number += 1
        events = [
            NewEvent.of(EventMessage(status_code=number, sender=name, status_message=part))
            for part in ("first", "second")
        ]
        while True:
            try:
                await journal.commit(history, events, RETRY_NO_VC)
                break
            except RetryNoVCError:
                await asyncio.sleep(random.uniform(0, 0.2))
        sys.stdout.write(f"{index} {number}\n")
        sys.stdout.flush()


async def note(item: FeedItem, output: Output) -> None:
    """Note an item under the next number."""
    count = int(await output.get("count") or 0) + 1
    output.set("count", str(count).encode())
    output.set(f"item/{count:09d}", f"{item.position} {item.event_id}".encode())


def subscriber(journal: Journal, name: str) -> Projection:
    return Projection(journal, name, note, options=ProjectionOptions(batch=20))


async def subscribe(url: str, name: str) -> None:
    """Be a projection."""
    async with persistence.connect(url) as store, Journal(store, "kills", options=OPTIONS) as journal:
        await subscriber(journal, name).run()


class Worker:
    """A process that is killed and started anew, and what it has said."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.said: Counter[int] = Counter()
        self._url = url
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, "--as", self.name, "--url", self._url]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self._listener = threading.Thread(target=self._listen, args=[self._process])
        self._listener.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):
                index, number = map(int, line.split())
                self.said[index] = max(self.said[index], number)

    def kill(self) -> None:
        assert self._process.poll() is None, f"{self.name} has ended by itself"
        self._process.kill()
        self._process.wait()
        self._listener.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


async def progress(url: str) -> list[int]:
    """The position of each subscriber."""
    async with persistence.connect(url) as store, Journal(store, "kills") as journal:
        return [await subscriber(journal, name).position() for name in SUBSCRIBERS]


async def check(url: str, said: dict[str, Counter[int]]) -> tuple[int, int]:
    """Let the subscribers finish, and compare; events and acknowledged commits counted."""
    async with persistence.connect(url) as store, Journal(store, "kills", options=OPTIONS) as journal:
        events = acknowledged = 0
        order: dict[UUID, list[str]] = {}
        for index, history in enumerate(HISTORIES):
            found = [event async for event in journal.find(history)]
            order[history] = [str(event.id) for event in found]
            events += len(found)
            messages = [event.message() for event in found]
            for name in WRITERS:
                own = [(each.status_code, each.status_message) for each in messages if each.sender == name]
                expected = [(n, part) for n in range(1, len(own) // 2 + 1) for part in ("first", "second")]
                assert own == expected, (
                    f"{name} in history {index}: commits are lost, doubled or halved: {own}"
                )
                assert len(own) >= 2 * said[name][index], f"{name} in {index}: an acknowledged commit is lost"
                acknowledged += said[name][index]
        last = await journal.feed.last_position()
        assert last == events, f"{events} events, and {last} positions"
        views: list[list[str]] = []
        for name in SUBSCRIBERS:
            projection = subscriber(journal, name)
            assert await projection.catch_up() == last
            rows = [(key, value.decode()) async for key, value in projection.output().scan("item/")]
            assert [int(value.split()[0]) for _, value in rows] == list(range(1, last + 1)), (
                f"{name} has missed items, or noted them twice, or out of order"
            )
            views.append([value for _, value in rows])
        assert views[0] == views[1] == views[2], "the subscribers differ"
        ids = [value.split()[1] for value in views[0]]
        for index, history in enumerate(HISTORIES):
            members = set(order[history])
            assert [id_ for id_ in ids if id_ in members] == order[history], (
                f"history {index} is out of order"
            )
        return events, acknowledged


def run(kind: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    with database_of(kind) as url:
        workers = {name: Worker(url, name) for name in (*WRITERS, *SUBSCRIBERS)}
        restarts: Counter[str] = Counter()
        try:
            for _ in range(kills):
                time.sleep(chance.uniform(0.1, 1.5))
                for name in (*SUBSCRIBERS, chance.choice(WRITERS)):
                    workers[name].kill()
                    workers[name].start()
                    restarts[name] += 1
            # The last ones get so far that there is something to compare.
            while min(asyncio.run(progress(url))) == 0:
                time.sleep(0.2)
        finally:
            for worker in workers.values():
                worker.kill()
        said = {name: workers[name].said for name in WRITERS}
        events, acknowledged = asyncio.run(check(url, said))
        restarted = sum(restarts[name] for name in SUBSCRIBERS) // len(SUBSCRIBERS)
        sys.stdout.write(
            f"{kind}, seed {seed}: {len(SUBSCRIBERS)} subscribers killed {restarted} times each, writers "
            f"{sum(restarts[name] for name in WRITERS)} times: {events} events, {acknowledged} acknowledged commits; "
            "missed 0, doubled 0, out of order 0\n"
        )
        assert acknowledged, "nothing was committed between the kills"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the kills")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument(
        "--url-kind", choices=ALL_KINDS, default="sqlite", metavar="KIND", help="which database"
    )
    parser.add_argument("--as", dest="role", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role in WRITERS:
        asyncio.run(write(arguments.url, arguments.role))
    elif arguments.role in SUBSCRIBERS:
        asyncio.run(subscribe(arguments.url, arguments.role))
    else:
        kills = max(arguments.kills // 10, 1) if arguments.quick else arguments.kills
        run(arguments.url_kind, kills, arguments.seed)


if __name__ == "__main__":
    main()
