"""Several processes on one SQLite file: races that one must win, and a process killed while it writes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from persistence import GetRequest
from persistence.stores.sqlite import SqliteStore
from tests.support.stores import run_together, start_python

PRELUDE = """
import asyncio, random, sys
from persistence import *

url, name = sys.argv[1:3]

def put(key, etag=None, first=False, value=b""):
    concurrency = Concurrency.FIRST_WRITE if first else Concurrency.DEFAULT
    return SetRequest(partition="p", key=key, value=value, etag=etag, options=SetOptions(concurrency=concurrency))

async def won(store, *operations):
    # Pauses let the processes really interleave; without them one tends to hold the file.
    await asyncio.sleep(random.random() / 500)
    try:
        await store.multi(operations)
    except ETagMismatchError:
        return 1 - 1
    return 1
"""

FIRST_WRITES = (
    PRELUDE
    + """
async def main():
    async with connect(url) as store:
        for key in range(30):
            wins = await asyncio.gather(*(won(store, put(f"key/{key}", first=True)) for _ in range(10)))
            print(key, sum(wins))

asyncio.run(main())
"""
)

WRITE_SKEW = (
    PRELUDE
    + """
async def main():
    mine, other = ("a", "b") if name == "0" else ("b", "a")
    async with connect(url) as store:
        for pair in range(40):
            check = CheckRequest("p", f"{pair}/{other}", ABSENT)
            print(pair, await won(store, check, put(f"{pair}/{mine}", first=True)))

asyncio.run(main())
"""
)

COUNTER = (
    PRELUDE
    + """
async def increment(store):
    for _ in range(10):
        while True:
            row = await store.get(GetRequest(partition="p", key="counter"))
            value = str(int(row.data or b"0") + 1).encode()
            if await won(store, put("counter", row.etag, not row.etag, value)):
                break

async def main():
    async with connect(url) as store:
        await asyncio.gather(*(increment(store) for _ in range(5)))

asyncio.run(main())
"""
)

ENDLESS_WRITER = """
import asyncio, itertools, sys
from persistence import *

async def write(store, worker):
    for number in itertools.count():
        operations = [SetRequest(partition=f"{worker}", key=f"{number}/{part}", value=b"x") for part in "abc"]
        await store.multi(operations)
        sys.stdout.write(f"{worker} {number}\\n")
        sys.stdout.flush()

async def main():
    async with connect(sys.argv[1]) as store:
        await asyncio.gather(*(write(store, worker) for worker in range(10)))

asyncio.run(main())
"""


def wins_by_line(outputs: list[str]) -> dict[str, int]:
    wins: dict[str, int] = {}
    for line in "".join(outputs).splitlines():
        name, won = line.split()
        wins[name] = wins.get(name, 0) + int(won)
    return wins


def race(program: str, path: Path) -> dict[str, int]:
    return wins_by_line(run_together(program, [(f"sqlite:///{path}", name) for name in "01"]))


def test_each_first_write_has_one_winner(tmp_path: Path) -> None:
    assert race(FIRST_WRITES, tmp_path / "state.db") == {str(key): 1 for key in range(30)}


def test_no_write_skew(tmp_path: Path) -> None:
    assert race(WRITE_SKEW, tmp_path / "state.db") == {str(pair): 1 for pair in range(40)}


async def test_no_increment_is_lost(tmp_path: Path) -> None:
    race(COUNTER, tmp_path / "state.db")
    async with SqliteStore(tmp_path / "state.db") as store:
        row = await store.get(GetRequest(partition="p", key="counter"))
    assert row.data == b"100"


def test_many_processes_open_a_fresh_file(tmp_path: Path) -> None:
    program = PRELUDE + "asyncio.run(connect(url).__aenter__())"
    run_together(program, [(f"sqlite:///{tmp_path}/state.db", str(name)) for name in range(6)])


@pytest.mark.parametrize("lines_before_the_end", [1, 300])
async def test_a_killed_process_loses_nothing_and_leaves_nothing_half_done(
    tmp_path: Path, lines_before_the_end: int
) -> None:
    path = tmp_path / "state.db"
    process = start_python(ENDLESS_WRITER, f"sqlite:///{path}")
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(lines_before_the_end)]
    process.send_signal(signal.SIGKILL)
    rest, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    acknowledged += rest.splitlines(keepends=True)
    whole = [line.split() for line in acknowledged if line.endswith("\n")]
    async with SqliteStore(path) as store:
        for worker in range(10):
            keys = {item.key async for item in store.scan(str(worker), "", "")}
            numbers = {key.split("/")[0] for key in keys}
            assert keys == {f"{number}/{part}" for number in numbers for part in "abc"}
            assert {number for name, number in whole if name == str(worker)} <= numbers
