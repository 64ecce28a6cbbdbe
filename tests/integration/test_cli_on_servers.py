"""The commands on databases that are servers: the same as on a file, also when the server goes away."""

from __future__ import annotations

import asyncio
import io
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from rich.console import Console

from hsm import ExecutionKey, Registry
from hsm.cli import _app, _inspect, _stores
from hsm.components import callback as callbacks
from hsm.components.callback import Callback, Refused, Request, Scheduled
from hsm.engine import Engine
from persistence import Metadata, StoreUnavailableError, connect
from persistence.proto.execution_pb2 import TaskRow
from persistence.store import SetRequest
from tests.conftest import NewServer
from tests.crash._rows import problems
from tests.support.databases import Database
from tests.support.deliveries import (
    TIME_LIMIT_SECONDS,
    Receiver,
    ended,
    hsm,
    receiver,
    start_hsm,
    write_lines,
)
from tests.support.servers import KINDS, Server
from tests.support.servers._process import free_port

pytestmark = pytest.mark.server

DELIVER = ("deliver", "deliveries.jsonl", "--first-retry", "0.05", "--longest-retry", "0.1")
WITH_PASSWORD = ("postgresql", "mariadb", "valkey", "etcd")


def write(folder: Path, to: Receiver, count: int) -> list[str]:
    ids = [f"d{number}" for number in range(count)]
    write_lines(folder / "deliveries.jsonl", *({"id": id_, "url": f"{to.urls[0]}/{id_}"} for id_ in ids))
    return ids


async def look(command: str, url: str, *rest: str) -> str:
    """What a command prints that looks into a database, run here because a process takes its time."""
    out = io.StringIO()
    console = Console(file=out, width=300)
    if command == "status":
        assert await _inspect.status(console, url, None, "", None, 100) == 0
    elif command == "show":
        assert await _inspect.show(console, url, None, "deliver", *rest) == 0
    elif command == "stores":
        assert await _stores.describe_store(console, url, as_json=False) == 0
    else:
        assert await _inspect.dead(console, url, None, rest) == 0
    return out.getvalue()


async def refuse(_: Request) -> callbacks.Outcome:
    return Refused("not in this process")


async def start_idle(database: Database) -> None:
    """An execution that has nothing to do."""
    registry = Registry()
    callbacks.register(registry, refuse)
    async with Engine(registry, database.store, run_tasks=False) as engine:
        await engine.start(ExecutionKey("other", "idle"), Callback.new(Request("http://x"), request_id="i"))


async def start_damaged(database: Database, to: str) -> tuple[str, bytes]:
    """A delivery whose task nobody knows; the key of its row, and what should stand there."""
    registry = Registry()
    callbacks.register(registry, refuse)
    async with Engine(registry, database.store, run_tasks=False) as engine:
        await engine.start(
            ExecutionKey("deliver", "damaged"),
            Callback.new(Request(f"{to}/damaged"), request_id="damaged", max_attempts=3),
            on_start=lambda node: node.apply(callbacks.scheduled, Scheduled()),
        )
    ((partition, item),) = await database.rows("o/")
    row = TaskRow.FromString(item.value)
    row.info.type = 4242
    await database.store.set(SetRequest(partition=partition, key=item.key, value=row.SerializeToString()))
    return item.key, item.value


@pytest.mark.parametrize("kind", KINDS)
async def test_commands_do_on_a_server_what_they_do_on_a_file(
    kind: str, server_of: Callable[[str], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, url_of_demo = server_of(kind).fresh_url(), server_of(kind).fresh_url()
    async with Database(url_of_demo) as database:
        await start_idle(database)
    monkeypatch.setenv("HSM_DB", url_of_demo)
    # It waits most of the time.
    demo = await start_hsm("demo", "--db", "--count", "20", folder=tmp_path)
    monkeypatch.setenv("HSM_DB", url)

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=410 if request.path == "/d1" else 200)

    async with receiver() as to:
        to.handler = handle
        ids = write(tmp_path, to, 20)
        async with Database(url) as database:
            key, good = await start_damaged(database, to.urls[0])
        first = await hsm(*DELIVER, folder=tmp_path)
        assert (first.status, "Traceback" in first.err) == (1, False), first
        assert to.ids == Counter(ids)
        assert "in all: 19 delivered, 2 failed, 0 waiting" in first.out

        lines = [line.split() for line in (await look("status", url)).splitlines()]
        assert ["deliver", "SUCCEEDED", "19"] in lines
        assert ["deliver", "FAILED", "1"] in lines
        shown = await look("show", url, "d1")
        assert "FAILED after 2 transitions" in shown
        assert "410" in shown

        task_id = key.rpartition("/")[2]
        assert f"{task_id}  4242 to {to.urls[0]} of deliver/damaged" in await look("dead", url)
        assert f"{task_id} is back in its queue" in await look("dead", url, task_id)
        async with Database(url) as database:
            (back,) = await database.keys("o/", "t/")
            await database.overwrite(back, good)
        second = await hsm(*DELIVER, folder=tmp_path)
    assert to.ids == Counter([*ids, "damaged"])
    assert "in all: 20 delivered, 1 failed, 0 waiting" in second.out
    assert await problems(url) == []

    told = await ended(demo)
    assert told.status == 0, told
    assert "0 lost, 0 inconsistent" in told.out
    assert "the database keeps these deliveries; their ids begin with demo-" in told.out
    assert "21 executions" in await look("status", url_of_demo)


@pytest.mark.parametrize("kind", KINDS)
async def test_looking_into_a_server_makes_nothing(kind: str, server_of: Callable[[str], Server]) -> None:
    url = server_of(kind).fresh_url()
    for command in ("status", "dead", "stores"):
        with pytest.raises(StoreUnavailableError, match="there is no"):
            await look(command, url)
    store = connect(url)
    with pytest.raises(StoreUnavailableError, match="there is no"):
        await store.init(Metadata({"create": "false"}))
    await store.aclose()

    async with connect(url):
        pass
    told = await look("stores", url)
    assert "features " in told
    assert "durability " in told


Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; its error, which is one line and tells no password."""

    def run_here(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hsm", *arguments])
        assert _app.run() == 2
        said = capsys.readouterr()
        assert "secret" not in said.out + said.err
        assert len(said.err.splitlines()) == 1, said.err
        assert said.err.startswith("hsm: ")
        return said.err

    return run_here


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "redis", "redis+cluster", "etcd"])
def test_server_that_is_not_there_is_named_in_one_line(
    scheme: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("HSM_DB", f"{scheme}://user:secret@127.0.0.1:{port}/{'' if scheme == 'etcd' else '0'}")
    for command in (("status",), ("demo", "--db"), ("stores", "--db")):
        assert str(port) in run(*command)


async def test_delivering_from_a_server_that_is_not_there_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("HSM_DB", f"redis://:secret@127.0.0.1:{port}/0")
    write_lines(tmp_path / "deliveries.jsonl")
    result = await hsm(*DELIVER, folder=tmp_path)
    assert (result.status, len(result.err.splitlines())) == (2, 1), result
    assert str(port) in result.err
    assert "secret" not in result.out + result.err


@pytest.mark.parametrize("kind", WITH_PASSWORD)
def test_wrong_password_is_told_without_telling_it(
    kind: str, new_server: NewServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server(kind, password="right-secret")
    url = server.fresh_url()
    assert "right-secret" in url
    monkeypatch.setenv("HSM_DB", url.replace("right-secret", "wrong-secret"))
    run("stores", "--db")
    monkeypatch.setenv("HSM_DB", url)
    assert "there is no" in run("status")


async def told(process: Process, words: str) -> str:
    """Read what a command writes on its standard error, up to a line with these words."""
    assert process.stderr is not None
    read = ""
    async with asyncio.timeout(TIME_LIMIT_SECONDS):
        while words not in read:
            line = await process.stderr.readline()
            assert line, read
            read += line.decode()
    return read


async def sent(to: Receiver, count: int) -> None:
    async with asyncio.timeout(TIME_LIMIT_SECONDS):
        while to.ids.total() < count:
            to.came.clear()
            await to.came.wait()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "valkey", "etcd"])
async def test_server_that_comes_back_is_waited_for_and_nothing_is_sent_twice(
    kind: str, new_server: NewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server(kind, durable=True)
    if not server.controllable:
        pytest.skip("somebody else runs this server")
    monkeypatch.setenv("HSM_DB", server.url)

    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.Response()

    async with receiver() as to:
        to.handler = slow
        ids = write(tmp_path, to, 200)
        process = await start_hsm(*DELIVER, "--concurrency", "4", folder=tmp_path)
        await sent(to, 50)
        await asyncio.to_thread(server.kill)
        before = await told(process, "waiting up to 60 s")
        await asyncio.to_thread(server.start)
        result = await ended(process)
    assert result.status == 0, result
    said = (before + result.err).splitlines()
    # The engine tells of leases that ran out, if the start has taken long.
    assert [line for line in said if not line.startswith(("database: ", "the lease "))] == []
    assert said[-1] == "database: it answers again"
    assert "200 lines: 200 new, 0 known" in result.out
    assert "in all: 200 delivered, 0 failed, 0 waiting" in result.out
    assert to.ids == Counter(ids)
    assert await problems(server.url) == []


@pytest.mark.parametrize("kind", ["postgresql", "valkey"])
async def test_server_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    kind: str, new_server: NewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server(kind, durable=True)
    if not server.controllable:
        pytest.skip("somebody else runs this server")
    monkeypatch.setenv("HSM_DB", server.url)

    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.Response()

    async with receiver() as to:
        to.handler = slow
        ids = write(tmp_path, to, 100)
        process = await start_hsm(*DELIVER, "--concurrency", "4", "--patience", "0.5", folder=tmp_path)
        await sent(to, 20)
        await asyncio.to_thread(server.kill)
        given_up = await ended(process)
        await asyncio.to_thread(server.start)
        result = await hsm(*DELIVER, folder=tmp_path)
    assert given_up.status == 2, given_up
    *_, last = lines = given_up.err.splitlines()
    # A task that waits for the database to answer may be left behind, which is told.
    told = ("database: ", "the lease ", "hsm: ")
    assert [line for line in lines if not line.startswith(told) and "are left behind" not in line] == []
    assert last.startswith("hsm: the database was away for 0.5 s: ")
    assert last.endswith("; run the same command again to go on")
    assert result.status == 0, result
    assert set(to.ids) == set(ids)
    assert await problems(server.url) == []


async def test_two_commands_share_the_work_and_end_when_all_of_it_is_done(
    server_of: Callable[[str], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSM_DB", server_of("postgresql").fresh_url())

    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.Response()

    async with receiver() as to:
        to.handler = slow
        ids = [f"d{number}" for number in range(600)]
        files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
        for file, part in zip(files, (ids[:300], ids[300:]), strict=True):
            write_lines(file, *({"id": id_, "url": f"{to.urls[0]}/{id_}"} for id_ in part))
        commands = [("deliver", file, "--concurrency", "4") for file in files]
        results = await asyncio.gather(*(hsm(*command, folder=tmp_path) for command in commands))
    assert to.ids == Counter(ids)
    for result in results:
        assert result.status == 0, result
        assert "300 lines: 300 new, 0 known" in result.out
    # One may be through before the other has begun with its last lines.
    assert any("in all: 600 delivered, 0 failed, 0 waiting" in result.out for result in results)
