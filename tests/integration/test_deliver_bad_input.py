"""What is wrong is told in one line that names it, and nothing else suffers."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import pytest

from hsm import ExecutionKey, Registry
from hsm.components import callback as callbacks
from hsm.components.callback import Callback, Refused, Request, Scheduled
from hsm.engine import Engine
from persistence.proto.execution_pb2 import TaskRow
from persistence.store import SetRequest
from tests.support.databases import Database
from tests.support.deliveries import Result, hsm, receiver, write_lines

DATABASE = "sqlite:///deliveries.db"
DELIVER = ("deliver", "deliveries.jsonl", "--db", DATABASE)


def assert_told(result: Result, *words: str, status: int = 2) -> None:
    assert result.status == status, result
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1, result.err
    for word in words:
        assert word in result.err


async def test_bad_lines_are_named_and_the_others_are_delivered(tmp_path: Path) -> None:
    async with receiver() as to:
        url = to.urls[0]
        write_lines(
            tmp_path / "deliveries.jsonl",
            {"id": "first", "url": f"{url}/first"},
            "{not json",
            b"\xff\xfe",
            {"id": "big", "url": f"{url}/big", "body": "x" * 2**20},
            {"id": "url", "url": "gopher://example.org"},
            {"id": "unknown", "url": url, "header": {}},
            {"id": "first", "url": f"{url}/first", "body": "other"},
            {"id": "first", "url": f"{url}/first"},
            {"id": "last", "url": f"{url}/last"},
        )
        result = await hsm(*DELIVER, folder=tmp_path)
        again = await hsm(*DELIVER, folder=tmp_path)
    assert to.ids == {"first": 1, "last": 1}
    assert (result.status, again.status) == (1, 1)
    told = [line.split(": ")[1:3] for line in result.err.splitlines()]
    assert sorted(told, key=lambda pair: pair[1]) == [
        ["MalformedLineError", "line 2"],
        ["MalformedLineError", "line 3"],
        ["OversizedLineError", "line 4"],
        ["MalformedLineError", "line 5"],
        ["MalformedLineError", "line 6"],
        ["ConflictingLineError", "line 7"],
    ]
    assert "9 lines: 2 new, 1 known, 6 refused" in result.out
    assert sorted(again.err.splitlines()) == sorted(result.err.splitlines())


async def test_id_of_an_earlier_file_with_other_content_is_refused(tmp_path: Path) -> None:
    async with receiver() as to:
        write_lines(tmp_path / "deliveries.jsonl", {"id": "a", "url": to.urls[0] + "/a"})
        await hsm(*DELIVER, folder=tmp_path)
        write_lines(
            tmp_path / "deliveries.jsonl",
            {"id": "a", "url": to.urls[0] + "/other"},
            {"id": "b", "url": to.urls[0] + "/b"},
        )
        result = await hsm(*DELIVER, folder=tmp_path)
    assert to.ids == {"a": 1, "b": 1}
    assert_told(result, "line 1", "'a'", status=1)


async def test_unusable_databases_and_files_are_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "deliveries.jsonl", {"id": "a", "url": "http://127.0.0.1:9/"})
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    with sqlite3.connect(tmp_path / "foreign.db") as foreign:
        foreign.execute("CREATE TABLE other (id)")
    foreign.close()
    before = (tmp_path / "foreign.db").read_bytes()
    deliver = ("deliver", file, "--db")
    assert_told(await hsm(*deliver, "oracle:///x", folder=tmp_path), "oracle", "sqlite")
    assert_told(await hsm(*deliver, "deliveries.db", folder=tmp_path), "://")
    assert_told(await hsm(*deliver, "sqlite://deliveries.db", folder=tmp_path), "three slashes")
    assert_told(await hsm(*deliver, "sqlite:///text.db", folder=tmp_path), "text.db")
    assert_told(
        await hsm(*deliver, "sqlite:///foreign.db", folder=tmp_path), "foreign.db", "another application"
    )
    assert_told(await hsm(*deliver, "sqlite:///no/such/folder.db", folder=tmp_path), "no/such")
    assert_told(await hsm("status", "--db", "sqlite:///none.db", folder=tmp_path), "none.db")
    assert (tmp_path / "foreign.db").read_bytes() == before
    assert not (tmp_path / "none.db").exists()
    missing = await hsm("deliver", "none.jsonl", "--db", DATABASE, folder=tmp_path)
    assert (missing.status, "none.jsonl" in missing.err, "Traceback" in missing.err) == (2, True, False)
    assert not (tmp_path / "deliveries.db").exists()


async def test_looking_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    async with Database(f"sqlite:///{tmp_path}/unused.db"):
        pass
    unused = (tmp_path / "unused.db").read_bytes()
    for command in ("status", "dead"):
        assert_told(await hsm(command, "--db", "sqlite:///none.db", folder=tmp_path), "none.db")
        assert_told(await hsm(command, "--db", "sqlite:///empty.db", folder=tmp_path), "empty.db")
        assert_told(await hsm(command, "--db", "sqlite:///unused.db", folder=tmp_path), "no engine has used")
    assert sorted(os.listdir(tmp_path)) == ["empty.db", "unused.db"]  # noqa: PTH208  a path would block
    assert (tmp_path / "empty.db").stat().st_size == 0
    assert (tmp_path / "unused.db").read_bytes() == unused


async def test_line_that_the_database_cannot_keep_is_named_and_the_others_are_delivered(
    tmp_path: Path,
) -> None:
    async with receiver() as to:
        lines = [
            {"id": id_, "url": f"{to.urls[0]}/{number}"}
            for number, id_ in enumerate(["\U0001f600" * 500, "b"])
        ]
        write_lines(tmp_path / "deliveries.jsonl", *lines)
        result = await hsm(*DELIVER, folder=tmp_path)
    assert to.ids == {"1": 1}
    assert_told(result, "line 1", "the database cannot keep it", status=1)


async def test_damaged_database_is_named(tmp_path: Path) -> None:
    async with receiver() as to:
        lines = [
            {"id": f"d{number}", "url": f"{to.urls[0]}/d{number}", "body": "x" * 2000} for number in range(50)
        ]
        write_lines(tmp_path / "deliveries.jsonl", *lines)
        assert (await hsm(*DELIVER, folder=tmp_path)).status == 0
    database = tmp_path / "deliveries.db"
    content = bytearray(database.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    database.write_bytes(content)
    assert_told(await hsm(*DELIVER, folder=tmp_path), "deliveries.db", "damaged")
    assert_told(await hsm("status", "--db", DATABASE, folder=tmp_path), "deliveries.db", "damaged")


async def test_locked_database_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "deliveries.jsonl", {"id": "a", "url": "http://127.0.0.1:9/"})
    holder = sqlite3.connect(tmp_path / "deliveries.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    options = "?busy_timeout=0.2&open_timeout=0.2"
    result = await hsm("deliver", "deliveries.jsonl", "--db", DATABASE + options, folder=tmp_path)
    holder.close()
    assert_told(result, "deliveries.db", "locked")


async def refuse(_: Request) -> callbacks.Outcome:
    return Refused("not in this process")


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    callbacks.register(registry, refuse)
    return registry


async def start(database: Database, registry: Registry, to: str, *ids: str) -> None:
    """Deliveries that no process has begun with."""
    async with Engine(registry, database.store, run_tasks=False) as engine:
        for id_ in ids:
            await engine.start(
                ExecutionKey("deliver", id_),
                Callback.new(Request(f"{to}/{id_}"), request_id=id_, max_attempts=3),
                on_start=lambda node: node.apply(callbacks.scheduled, Scheduled()),
            )


async def test_undecodable_machine_is_dead_lettered_and_the_others_are_delivered(
    tmp_path: Path, registry: Registry
) -> None:
    async with receiver() as to, Database(f"sqlite:///{tmp_path}/deliveries.db") as database:
        await start(database, registry, to.urls[0], "a", "b", "c")
        key = await database.overwrite("e/deliver/b/", b"\xff\xff")
        write_lines(tmp_path / "deliveries.jsonl", {"id": "d", "url": f"{to.urls[0]}/d"})
        result = await hsm(*DELIVER, folder=tmp_path)
        assert to.ids == {"a": 1, "c": 1, "d": 1}
        dead = await hsm("dead", "--db", DATABASE, folder=tmp_path)
        show = await hsm("show", "--db", DATABASE, "b", folder=tmp_path)
    assert result.status == 1
    assert "in all: 3 delivered, 1 failed, 0 waiting" in result.out
    assert "`hsm dead`" in result.out
    assert key in dead.out.replace("\n", "")
    assert_told(show, key)


async def test_dead_letter_is_replayed_by_its_id(tmp_path: Path, registry: Registry) -> None:
    async with receiver() as to, Database(f"sqlite:///{tmp_path}/deliveries.db") as database:
        await start(database, registry, to.urls[0], "a", "b")
        key, good = await damage_task(database, "b")
        write_lines(tmp_path / "deliveries.jsonl")
        first = await hsm(*DELIVER, folder=tmp_path)
        assert (first.status, to.ids) == (1, {"a": 1})
        task_id = key.rpartition("/")[2]
        dead = await hsm("dead", "--db", DATABASE, folder=tmp_path)
        assert f"{task_id}  4242 to {to.urls[0]} of deliver/b, 1 attempts" in dead.out
        assert "task type 4242 is not registered" in dead.out
        unknown = await hsm("dead", "--db", DATABASE, "--replay", task_id, "nonsense", folder=tmp_path)
        assert_told(unknown, "nonsense", "nothing was replayed")
        replayed = await hsm("dead", "--db", DATABASE, "--replay", task_id, folder=tmp_path)
        assert (replayed.status, f"{task_id} is back in its queue" in replayed.out) == (0, True)
        (back,) = await database.keys("o/", "t/")
        assert back.endswith(f"/{task_id}")
        await database.overwrite(back, good)
        second = await hsm(*DELIVER, folder=tmp_path)
    assert (second.status, to.ids) == (0, Counter("ab"))


async def damage_task(database: Database, id_: str) -> tuple[str, bytes]:
    """Give the queued task of a delivery a type that nobody knows; its key, and what was there."""
    for partition, item in await database.rows("o/"):
        row = TaskRow.FromString(item.value)
        if row.execution.id == id_:
            row.info.type = 4242
            value = row.SerializeToString()
            await database.store.set(SetRequest(partition=partition, key=item.key, value=value))
            return item.key, item.value
    raise AssertionError(f"{id_} has no task")


@pytest.mark.parametrize("missing", ["click", "rich", "aiohttp"])
async def test_missing_extra_is_named(tmp_path: Path, missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; import hsm.cli; hsm.cli.main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert (process.returncode, len(err.splitlines())) == (2, 1)
    assert missing in err.decode()
    assert "hsm-toolkit[" in err.decode()


@pytest.mark.parametrize("row", ["e/deliver/b/", "c/deliver/b"])
async def test_undecodable_execution_is_named_and_the_others_are_delivered(
    tmp_path: Path, registry: Registry, row: str
) -> None:
    async with receiver() as to, Database(f"sqlite:///{tmp_path}/deliveries.db") as database:
        await start(database, registry, to.urls[0], "a", "b", "c")
        key = await database.overwrite(row, b"\xff\xff")
        write_lines(
            tmp_path / "deliveries.jsonl", *({"id": id_, "url": f"{to.urls[0]}/{id_}"} for id_ in "bd")
        )
        result = await hsm(*DELIVER, folder=tmp_path)
        status = await hsm("status", "--db", DATABASE, folder=tmp_path)
        show = await hsm("show", "--db", DATABASE, "b", folder=tmp_path)
    assert {"a", "c", "d"} <= to.ids.keys()
    assert max(to.ids.values()) == 1
    assert (result.status, key in result.err, "Traceback" in result.err) == (1, True, False)
    assert status.status == 0
    assert (key in status.out) == key.startswith("e/")
    assert_told(show, key)


async def test_undecodable_tasks_and_dead_letters_do_not_hold_up_the_end(
    tmp_path: Path, registry: Registry
) -> None:
    async with receiver() as to, Database(f"sqlite:///{tmp_path}/deliveries.db") as database:
        await start(database, registry, to.urls[0], "a", "b")
        ((partition, item), _) = await database.rows("o/")
        for key in (item.key, "d/nonsense"):
            await database.store.set(SetRequest(partition=partition, key=key, value=b"\xff\xff"))
        write_lines(tmp_path / "deliveries.jsonl")
        result = await hsm(*DELIVER, folder=tmp_path)
        dead = await hsm("dead", "--db", DATABASE, folder=tmp_path)
        replayed = await hsm("dead", "--db", DATABASE, "--replay", "nonsense", folder=tmp_path)
    assert len(to.ids) == 1
    assert result.status == 1
    assert "in all: 1 delivered, 0 failed, 1 waiting" in result.out
    assert dead.status == 0
    assert item.key in dead.out
    assert "d/nonsense" in dead.out
    assert_told(replayed, "d/nonsense")
