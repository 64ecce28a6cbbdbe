"""Kill a database server again and again under one store that goes on: what it acknowledged is there.

    python tests/crash/store_kills.py                                    20 kills of every server
    python tests/crash/store_kills.py --kills 100 --kinds postgresql etcd
    python tests/crash/store_kills.py --quick                            2 kills each
    python tests/crash/store_kills.py --cuts                             cut the line to the server instead
    python tests/crash/store_kills.py --stalls                           stop the server for a while instead

Writers write through one store, by multis that are to succeed, and by some that are to be refused; readers read
what was acknowledged. The server is killed with SIGKILL at random moments, and started again. After each start
every writer must get on, through the same store. Fresh stores look into the database between the kills and in
the end, and compare it with what the writers were told:

* acknowledged: all rows of the multi are there; else `lost`.
* refused (a condition did not hold, a bad request) or unavailable (nothing was written): no row; else `found`.
* unknown (the connection broke during the commit): all rows or none; else `half`. `written` of them were carried
  out after all, and `late` tells how often that came after a read that was to find out, so that the next multi of
  the writer was refused: a server that was stopped may go on with what its client has given up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import attrs

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from persistence import (  # noqa: E402
    ABSENT,
    CheckRequest,
    CommitOutcomeUnknownError,
    EngineStore,
    ETagInvalidError,
    ETagMismatchError,
    GetRequest,
    InvalidRequestError,
    Operation,
    SetRequest,
    StoreUnavailableError,
    connect,
    require,
)
from tests.crash._kinds import add_kinds, table  # noqa: E402
from tests.support.servers import KINDS, MissingServerError, Server, running  # noqa: E402

_WRITERS: Final = 16
_PARTITIONS: Final = 4
_READERS: Final = 2
_PARTS: Final = ("a", "b", "c")
_PAUSE_SECONDS: Final = 0.02
_RECOVERY_SECONDS: Final = 60
_PATIENCE_SECONDS: Final = 1
_CHECK_EVERY: Final = 5
_WRONG_ETAG: Final = "f" * 16


@attrs.define
class Books:
    """What the callers were told, and what is wrong with it."""

    acknowledged: set[str] = attrs.field(factory=set)
    refused: set[str] = attrs.field(factory=set)
    unavailable: set[str] = attrs.field(factory=set)
    unknown: set[str] = attrs.field(factory=set)
    recent: deque[str] = attrs.field(factory=lambda: deque(maxlen=500))
    written_after_all: int = 0
    late: int = 0
    reads: int = 0
    reads_refused: int = 0
    lost: set[str] = attrs.field(factory=set)
    found: set[str] = attrs.field(factory=set)
    half: set[str] = attrs.field(factory=set)
    problems: list[str] = attrs.field(factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.found or self.half or self.problems)


@attrs.define
class Writer:
    """Writes numbered multis, each on condition that the one before is the last.

    Attributes:
        number: of the writer.
        progress: how many of its multis were acknowledged.
    """

    number: int
    store: EngineStore
    books: Books
    progress: int = 0
    _etag: str | None = None
    _unsure: bool = False

    @property
    def partition(self) -> str:
        return f"kills/{self.number % _PARTITIONS}"

    def name(self, turn: int) -> str:
        return f"{self.partition} {self.number}/{turn}"

    async def run(self) -> None:
        turn = 0
        while True:
            turn += 1
            name = self.name(turn)
            try:
                if turn % 5 == 0:
                    await self._write_what_is_refused(turn)
                else:
                    self._etag = await self.store.multi(self._operations(turn))
                    self.books.acknowledged.add(name)
                    self.books.recent.append(name)
                    self.progress += 1
                    self._unsure = False
            except (ETagMismatchError, InvalidRequestError, ETagInvalidError) as error:
                self.books.refused.add(name)
                if turn % 5:
                    if self._unsure and isinstance(error, ETagMismatchError):
                        self.books.late += 1
                    else:
                        self.books.problems.append(f"{name} was refused: {error!r}")
                    await self._look()
            except StoreUnavailableError:
                self.books.unavailable.add(name)
                await asyncio.sleep(_PAUSE_SECONDS)
            except CommitOutcomeUnknownError:
                self.books.unknown.add(name)
                self._unsure = True
                await self._look()
            except Exception as error:  # noqa: BLE001  every other error is a finding
                self.books.problems.append(f"{name} met {error!r}")
                self.books.unknown.add(name)
                await asyncio.sleep(_PAUSE_SECONDS)
                await self._look()

    def _operations(self, turn: int) -> list[Operation]:
        value = str(turn).encode()
        last = SetRequest(partition=self.partition, key=f"last/{self.number}", value=value, etag=self._etag)
        check = CheckRequest(self.partition, f"{self.number}/{turn}/{_PARTS[0]}", ABSENT)
        rows = [
            SetRequest(partition=self.partition, key=f"{self.number}/{turn}/{part}", value=value)
            for part in _PARTS
        ]
        return [last, check, *rows]

    async def _write_what_is_refused(self, turn: int) -> None:
        operations = self._operations(turn)
        wrong = ["not an etag", _WRONG_ETAG][turn // 5 % 2]
        operations.append(CheckRequest(self.partition, f"last/{self.number}", wrong))
        await self.store.multi(operations)
        self.books.problems.append(f"{self.name(turn)} was not refused")

    async def _look(self) -> None:
        """Read one's last etag, as soon as the server answers."""
        while True:
            try:
                request = GetRequest(partition=self.partition, key=f"last/{self.number}")
                self._etag = (await self.store.get(request)).etag
            except StoreUnavailableError:
                await asyncio.sleep(_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001  every other error is a finding
                self.books.problems.append(f"a read met {error!r}")
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return


async def read_acknowledged(store: EngineStore, books: Books) -> None:
    """Read what was acknowledged, over and over."""
    while True:
        await asyncio.sleep(_PAUSE_SECONDS / 4)
        if not books.recent:
            continue
        name = random.choice(books.recent)
        partition, _, group = name.partition(" ")
        try:
            answer = await store.get(GetRequest(partition=partition, key=f"{group}/{random.choice(_PARTS)}"))
        except StoreUnavailableError:
            books.reads_refused += 1
        except Exception as error:  # noqa: BLE001  every other error is a finding
            books.problems.append(f"a read met {error!r}")
        else:
            books.reads += 1
            if answer.data != group.partition("/")[2].encode():
                books.lost.add(name)


@asynccontextmanager
async def load(store: EngineStore, books: Books) -> AsyncIterator[Sequence[Writer]]:
    """Writers and readers at work."""
    writers = [Writer(number, store, books) for number in range(_WRITERS)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(writer.run()) for writer in writers]
        tasks += [group.create_task(read_acknowledged(store, books)) for _ in range(_READERS)]
        yield writers
        for task in tasks:
            task.cancel()


async def progress(writers: Sequence[Writer], multis: int) -> None:
    """Return when every writer has got on, and all together by so many multis."""
    before = [writer.progress for writer in writers]
    while True:
        gains = [writer.progress - old for writer, old in zip(writers, before, strict=True)]
        if min(gains) > 0 and sum(gains) >= multis:
            return
        await asyncio.sleep(_PAUSE_SECONDS / 4)


class Fault(Protocol):
    """What befalls a database."""

    async def strike(self) -> None:
        """Let it befall."""
        ...

    async def heal(self) -> None:
        """Let it be over."""
        ...


@attrs.frozen
class Death:
    """The server is killed, and started again."""

    server: Server

    async def strike(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def heal(self) -> None:
        await asyncio.to_thread(self.server.start)


@attrs.frozen
class Stall:
    """The server is stopped with SIGSTOP, and goes on later with what it was at."""

    server: Server

    async def strike(self) -> None:
        await asyncio.to_thread(self.server.pause)

    async def heal(self) -> None:
        await asyncio.to_thread(self.server.resume)


class Cut:
    """The line between the store and the server is cut, often just when the server answers.

    The server itself notices little of it: what has arrived is carried out, but nobody is told.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._whole = True
        self._deaf = False
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def line(self, url: str) -> AsyncIterator[str]:
        """The URL of a database, by way of this line."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        try:
            yield url.replace(f":{self._port}", f":{server.sockets[0].getsockname()[1]}")
        finally:
            server.close()
            self._cut()

    async def strike(self) -> None:
        self._deaf = random.random() < 0.7
        await asyncio.sleep(random.uniform(0, 0.02))
        self._whole = False
        self._cut()

    async def heal(self) -> None:
        self._whole, self._deaf = True, False

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        both = {writer, requests}
        self._writers |= both
        try:
            await asyncio.gather(self._carry(reader, requests), self._carry(answers, writer, back=True))
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool = False
    ) -> None:
        try:
            while block := await reader.read(2**16):
                if not (back and self._deaf):
                    writer.write(block)
                    await writer.drain()
        except OSError:
            pass  # it was cut
        finally:
            writer.close()


async def strike_and_heal(fault: Fault, writers: Sequence[Writer], books: Books, multis: int) -> None:
    """A fault at a random moment under load; and then so many multis, at most, that are acknowledged."""
    await asyncio.sleep(random.uniform(0, 0.1))
    await fault.strike()
    # Shorter and longer than what requests wait for: some are carried out afterwards, others refused.
    await asyncio.sleep(random.choice([0, random.uniform(0, 2 * _PATIENCE_SECONDS)]))
    await fault.heal()
    try:
        async with asyncio.timeout(_RECOVERY_SECONDS):
            await progress(writers, random.randint(multis // 10, multis))
    except TimeoutError:
        stuck = [writer.number for writer in writers if not writer.progress]
        books.problems.append(f"writers did not get on after a restart (never: {stuck})")


async def look_between(url: str, books: Books) -> None:
    """What was told so far, while writers go on."""
    told = Books(
        acknowledged=set(random.sample(sorted(books.acknowledged), min(1000, len(books.acknowledged)))),
        refused=set(books.refused),
        unavailable=set(books.unavailable),
    )
    names = [*told.acknowledged, *told.refused, *told.unavailable]
    async with require(connect(url), EngineStore) as store:
        answers = await store.bulk_get(
            [request for name in names for request in _requests(name)], parallelism=500
        )
    for index, name in enumerate(names):
        rows = answers[index * len(_PARTS) : (index + 1) * len(_PARTS)]
        for row in rows:
            if row.error is not None:
                raise row.error
        judge(name, sum(row.data is not None for row in rows), told)
    books.lost |= told.lost
    books.found |= told.found
    books.half |= told.half


def _requests(name: str) -> list[GetRequest]:
    partition, _, group = name.partition(" ")
    return [GetRequest(partition=partition, key=f"{group}/{part}") for part in _PARTS]


def judge(name: str, rows: int, books: Books) -> None:
    """Compare the number of rows that a multi has in the database with what its caller was told."""
    if 0 < rows < len(_PARTS):
        books.half.add(name)
    elif rows and (name in books.refused or name in books.unavailable):
        books.found.add(name)
    elif not rows and name in books.acknowledged:
        books.lost.add(name)


async def look_in_the_end(url: str, books: Books) -> None:
    """Everything, when nobody writes any more."""
    rows: Counter[str] = Counter()
    last: dict[str, int] = {}
    highest: dict[str, int] = {}
    async with require(connect(url), EngineStore) as store:
        for number in range(_PARTITIONS):
            partition = f"kills/{number}"
            async for item in store.scan(partition, "", ""):
                if item.key.startswith("last/"):
                    last[f"{partition} {item.key.removeprefix('last/')}"] = int(item.value)
                    continue
                writer, turn, _ = item.key.split("/")
                name = f"{partition} {writer}/{turn}"
                rows[name] += 1
                highest[f"{partition} {writer}"] = max(int(turn), highest.get(f"{partition} {writer}", 0))
                if item.value != turn.encode():
                    books.problems.append(f"{name} has the value {item.value!r}")
    told = books.acknowledged | books.refused | books.unavailable | books.unknown
    for name in told | rows.keys():
        judge(name, rows[name], books)
    books.written_after_all = sum(rows[name] > 0 for name in books.unknown)
    books.problems += [f"nobody has written {name}" for name in rows.keys() - told - _under_way(books, rows)]
    if last != highest:
        books.problems.append(f"the last rows say {last}, the others {highest}")


def _under_way(books: Books, rows: Counter[str]) -> set[str]:
    """Multis whose caller was cancelled in the end: at most one of each writer, the one after all it was told."""
    told: Counter[str] = Counter()
    for name in books.acknowledged | books.refused | books.unavailable | books.unknown:
        writer, _, turn = name.rpartition("/")
        told[writer] = max(told[writer], int(turn))
    return {name for name in rows if int(name.rpartition("/")[2]) == told[name.rpartition("/")[0]] + 1}


async def run_kills(server: Server, kills: int, *, multis: int = 500) -> Books:
    """The whole story on one empty database of a server, with at most so many multis between two kills."""
    url = server.fresh_url()
    return await run_faults(Death(server), url, url, kills, multis)


async def run_stalls(server: Server, stalls: int, *, multis: int = 500) -> Books:
    """The same with a server that stops and goes on."""
    url = server.fresh_url()
    return await run_faults(Stall(server), url, url, stalls, multis)


async def run_cuts(server: Server, cuts: int, *, multis: int = 500) -> Books:
    """The same with cuts of the line."""
    url = server.fresh_url()
    cut = Cut(server.port)
    async with cut.line(url) as line:
        return await run_faults(cut, line, url, cuts, multis)


async def run_faults(fault: Fault, url: str, safe_url: str, faults: int, multis: int) -> Books:
    """Strike a database under load, and look into it by a URL that the fault does not concern."""
    url += (
        f"{'&' if '?' in url else '?'}connect_timeout={_PATIENCE_SECONDS}&request_timeout={_PATIENCE_SECONDS}"
    )
    books = Books()
    async with require(connect(url), EngineStore) as store, load(store, books) as writers:
        async with asyncio.timeout(_RECOVERY_SECONDS):
            await progress(writers, 100)
        for turn in range(faults):
            await strike_and_heal(fault, writers, books, multis)
            if turn % _CHECK_EVERY == 0:
                await look_between(safe_url, books)
            if books.problems:
                break
    await look_in_the_end(safe_url, books)
    return books


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="2 kills each")
    parser.add_argument(
        "--cuts", action="store_true", help="cut the line to the server instead of killing it"
    )
    parser.add_argument(
        "--stalls", action="store_true", help="stop the server for a while instead of killing it"
    )
    add_kinds(parser, KINDS)
    arguments = parser.parse_args()
    kills = 2 if arguments.quick else arguments.kills
    found: dict[str, Books] = {}
    head = "server kills acknowledged refused unavailable unknown written late reads lost found half problems seconds"
    rows: list[list[object]] = [[*head.split()]]
    run = run_cuts if arguments.cuts else run_stalls if arguments.stalls else run_kills
    # A client of a cluster is told the addresses of its nodes, and would go past the line.
    kinds = [kind for kind in arguments.kinds if not (arguments.cuts and kind == "valkey-cluster")]
    for kind in kinds:
        began = time.monotonic()
        try:
            with running(kind, durable=True, own=True) as server:
                books = found[kind] = asyncio.run(run(server, kills))
        except MissingServerError as error:
            print(f"{kind}: {error}")
            continue
        told = [books.acknowledged, books.refused, books.unavailable, books.unknown]
        wrong = [books.lost, books.found, books.half, books.problems]
        row: list[object] = [
            kind,
            kills,
            *map(len, told),
            books.written_after_all,
            books.late,
            books.reads,
            *map(len, wrong),
        ]
        rows.append([*row, f"{time.monotonic() - began:.0f}"])
    print(table(rows))
    for kind, books in found.items():
        for problem in books.problems[:10]:
            print(f"{kind}: {problem}")
        for name, which in (("lost", books.lost), ("found", books.found), ("half", books.half)):
            if which:
                print(f"{kind}, {name}: {', '.join(sorted(which)[:10])}")
    sys.exit(0 if found and all(books.good for books in found.values()) else 1)


if __name__ == "__main__":
    main()
