"""The PostgreSQL store when something breaks: the server, the connection, another process that stands still."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from persistence import (
    CommitOutcomeUnknownError,
    DeleteRequest,
    ETagMismatchError,
    GetRequest,
    SetRequest,
    StoreBusyError,
    StoreUnavailableError,
)
from persistence.stores.postgresql import PostgresOptions, PostgresStore, from_url
from persistence.stores.postgresql.session import Connector
from persistence.stores.postgresql.settings import divide_url
from tests.conftest import NewServer
from tests.support.servers import Server
from tests.support.stores import start_python

pytestmark = pytest.mark.server


@pytest.fixture
def server(server_of: Callable[[str], Server]) -> Server:
    return server_of("postgresql")


@pytest.fixture
def url(server: Server) -> str:
    return server.fresh_url()


def put(key: str, value: bytes = b"", **more: Any) -> SetRequest:
    return SetRequest(key=key, value=value, **more)


async def value_of(store: PostgresStore, key: str) -> bytes | None:
    return (await store.get(GetRequest(key=key))).data


async def cut_connections(url: str) -> None:
    """End all connections to the schema's server but this one, as an administrator may."""
    conninfo = make_conninfo("", **divide_url(url)[0])
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )


# Commits whose connection is lost


class Wire:
    """Passes on what a store and its server say; at a commit it does what it is told to, once.

    Attributes:
        at_commit: is given the commit's bytes and the connection to the server, just before the store's
            connection is cut.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._broken = False
        self.at_commit: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]] | None = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._broken:
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, to_server]
        with suppress(OSError):
            await asyncio.gather(self._forward(reader, to_server, writer), self._back(from_server, writer))
        to_server.transport.abort()
        writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, store: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(2**20):
            if self.at_commit is not None and b"COMMIT\0" in data:
                act, self.at_commit = self.at_commit, None
                # The store hears nothing of what comes now.
                self._broken = True
                store.transport.abort()
                await act(data, server)
                self._broken = False
                server.transport.abort()
                return
            server.write(data)
        server.transport.abort()

    async def _back(self, reader: asyncio.StreamReader, store: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**20):
                store.write(data)
        store.transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def store_on_a_wire(
    server: Server, url: str, *options: str
) -> AsyncIterator[tuple[PostgresStore, Wire]]:
    wire = Wire(server.port)
    listening = await asyncio.start_server(wire.accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    # Not prepared, so that the word stands on the wire.
    through = "&".join((url.replace(f":{server.port}/", f":{port}/"), "prepare=false", *options))
    try:
        async with from_url(through) as store:
            yield store, wire
    finally:
        listening.close()
        wire.close()


async def until(url: str, condition: str) -> None:
    """Wait until the server's catalogue says so."""
    conninfo = make_conninfo("", **divide_url(url)[0])
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        async with asyncio.timeout(20):
            while True:
                cursor = await connection.execute(condition.encode())
                if await cursor.fetchone():
                    return
                await asyncio.sleep(0.02)


async def test_a_commit_whose_answer_is_lost_took_place(server: Server, url: str) -> None:
    async with store_on_a_wire(server, url) as (store, wire):
        first = await store.multi([put("a", b"1")])

        async def deliver(data: bytes, to_server: asyncio.StreamWriter) -> None:
            to_server.write(data)
            await to_server.drain()
            await until(url, f"SELECT 1 FROM {divide_url(url)[1]['schema']}.kv WHERE v = '2'")

        wire.at_commit = deliver
        second = await store.multi([put("a", b"2", etag=first), DeleteRequest(key="b")])
        assert (await store.get(GetRequest(key="a"))).etag == second


async def test_a_commit_of_deletions_whose_answer_is_lost_took_place(server: Server, url: str) -> None:
    schema = divide_url(url)[1]["schema"]
    async with store_on_a_wire(server, url) as (store, wire):
        etag = await store.multi([put("a")])

        async def deliver(data: bytes, to_server: asyncio.StreamWriter) -> None:
            to_server.write(data)
            await to_server.drain()
            await until(url, f"SELECT 1 WHERE NOT EXISTS (SELECT FROM {schema}.kv)")

        wire.at_commit = deliver
        await store.delete(DeleteRequest(key="a", etag=etag))
        assert await value_of(store, "a") is None


async def test_a_commit_that_the_server_never_saw_is_made_again(server: Server, url: str) -> None:
    async with store_on_a_wire(server, url) as (store, wire):
        etag = await store.multi([put("a", b"1")])

        async def lose(data: bytes, to_server: asyncio.StreamWriter) -> None:
            pass

        wire.at_commit = lose
        outcomes = await asyncio.gather(
            store.multi([put("a", b"2", etag=etag)]), store.multi([put("a", b"3", etag=etag)]),
            return_exceptions=True,
        )  # fmt: skip
        assert isinstance(outcomes[0], str)
        assert isinstance(outcomes[1], ETagMismatchError)
        assert await value_of(store, "a") == b"2"


@pytest.mark.parametrize("seen", [True, False])
async def test_a_crash_during_a_commit_is_cleared_up(new_server: NewServer, seen: bool) -> None:
    server = new_server("postgresql")
    url = server.fresh_url()
    async with store_on_a_wire(server, url) as (store, wire):
        etag = await store.multi([put("a", b"1")])

        async def crash(data: bytes, to_server: asyncio.StreamWriter) -> None:
            if seen:
                to_server.write(data)
                await to_server.drain()
                await until(url, f"SELECT 1 FROM {divide_url(url)[1]['schema']}.kv WHERE v = '2'")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

        wire.at_commit = crash
        second = await store.multi([put("a", b"2", etag=etag)])
        assert (await store.get(GetRequest(key="a"))).etag == second


async def test_an_outcome_that_cannot_be_found_out_is_not_guessed(new_server: NewServer) -> None:
    server = new_server("postgresql")
    async with store_on_a_wire(server, server.fresh_url(), "request_timeout=2") as (store, wire):
        etag = await store.multi([put("a")])

        async def crash(data: bytes, to_server: asyncio.StreamWriter) -> None:
            await asyncio.to_thread(server.kill)

        wire.at_commit = crash
        with pytest.raises(CommitOutcomeUnknownError, match="on 127"):
            await store.multi([put("a", b"2", etag=etag)])
        with pytest.raises(StoreUnavailableError):
            await store.set(put("a"))
        server.start()
        await store.set(put("a", b"3"))
        assert await value_of(store, "a") == b"3"


async def test_deletions_before_a_crash_cannot_be_proved(new_server: NewServer) -> None:
    server = new_server("postgresql")
    url = server.fresh_url()
    schema = divide_url(url)[1]["schema"]
    async with store_on_a_wire(server, url) as (store, wire):
        etag = await store.multi([put("a")])

        async def crash(data: bytes, to_server: asyncio.StreamWriter) -> None:
            to_server.write(data)
            await to_server.drain()
            await until(url, f"SELECT 1 WHERE NOT EXISTS (SELECT FROM {schema}.kv)")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

        wire.at_commit = crash
        with pytest.raises(CommitOutcomeUnknownError):
            await store.delete(DeleteRequest(key="a", etag=etag))
        assert await value_of(store, "a") is None


# Servers that come and go


async def test_a_store_outlives_its_server(new_server: NewServer) -> None:
    server = new_server("postgresql")
    async with from_url(server.fresh_url()) as store:
        await store.set(put("a", b"1"))
        server.kill()
        for attempt in (store.get(GetRequest(key="a")), store.set(put("b")), store.ping()):
            with pytest.raises(StoreUnavailableError, match=f"port {server.port}"):
                await attempt
        with pytest.raises(StoreUnavailableError):
            await store.delete_with_prefix("", "a")
        server.start()
        assert await value_of(store, "a") == b"1"
        await store.set(put("b"))
        await store.ping()
        assert await store.delete_with_prefix("", "b") == 0


async def test_a_restart_between_two_requests_is_not_noticed(new_server: NewServer) -> None:
    server = new_server("postgresql")
    async with from_url(server.fresh_url()) as store:
        await store.set(put("a||b", b"1"))
        server.stop()
        server.start()
        await asyncio.gather(store.set(put("c")), value_of(store, "a||b"))
        server.kill()
        server.start()
        assert await store.delete_with_prefix("", "a") == 1
        assert [item.key async for item in store.scan("", "", "")] == ["c"]


async def test_connections_cut_again_and_again_lose_no_write(url: str) -> None:
    counted = 0

    async def increment(store: PostgresStore) -> None:
        nonlocal counted
        for _ in range(20):
            while True:
                try:
                    row = await store.get(GetRequest(key="counter"))
                    value = b"%d" % (int(row.data or b"0") + 1)
                    await store.set(put("counter", value, etag=row.etag))
                except (ETagMismatchError, StoreUnavailableError):
                    await asyncio.sleep(0.001)
                else:
                    counted += 1
                    break

    async with from_url(url) as store, from_url(url) as other:
        await store.set(put("counter", b"0"))
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(increment(each)) for each in (store, other) for _ in range(5)]
            while not all(worker.done() for worker in workers):
                await asyncio.sleep(0.05)
                await cut_connections(url)
        assert await value_of(store, "counter") == b"%d" % counted == b"200"


# Processes that stand still

STOPS_WITH_THE_LOCK = """
import asyncio, os, signal, sys
from persistence import *
from persistence.stores.postgresql import writing

decide = writing.decide

def stop(*arguments):
    writing.decide = decide
    os.kill(os.getpid(), signal.SIGSTOP)
    return decide(*arguments)

async def main():
    async with connect(sys.argv[1]) as store:
        writing.decide = stop
        await store.set(SetRequest(key="a", value=b"theirs"))

asyncio.run(main())
print("done")
"""


async def stopped(url: str) -> Any:
    process = start_python(STOPS_WITH_THE_LOCK, url)
    _, status = await asyncio.to_thread(os.waitpid, process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return process


async def test_a_stopped_process_holds_others_up_until_the_time_out_only(url: str) -> None:
    async with from_url(url) as store:
        process = await stopped(url + "&idle_timeout=0.5")
        await store.set(put("a", b"ours"))
        assert await value_of(store, "a") == b"ours"
        # It finds that its transaction is gone, and does it again.
        process.send_signal(signal.SIGCONT)
        output, errors = await asyncio.to_thread(process.communicate)
        assert output == "done\n", errors
        assert await value_of(store, "a") == b"theirs"


async def test_a_process_stopped_between_two_messages_holds_others_up_until_the_time_out_only(
    url: str,
) -> None:
    parameters, _ = divide_url(url)
    hasty = PostgresOptions(idle_timeout=timedelta(seconds=0.2), request_timeout=timedelta(seconds=0.3))
    session, facts = await Connector(parameters, hasty).connect()
    if facts.version < 170000:
        pytest.skip("the server has no transaction_timeout")
    other, _ = await Connector(parameters, PostgresOptions()).connect()
    with suppress(psycopg.Error):
        async with session.connection.pipeline():
            await session.connection.execute(b"BEGIN")
            await session.connection.execute(b"SELECT pg_advisory_xact_lock(5)")
            await until(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 5 AND granted")
            await other.rows(b"SELECT pg_advisory_lock(5)")
    assert await other.rows(b"SELECT pg_advisory_unlock(5)") == [(True,)]
    await session.aclose()
    await other.aclose()


async def test_a_lock_that_is_held_for_too_long_is_told(url: str) -> None:
    async with from_url(url + "&lock_timeout=0.3") as store:
        process = await stopped(url + "&idle_timeout=30")
        with pytest.raises(StoreBusyError, match="locked by somebody else"):
            await store.set(put("a", b"ours"))
        await store.set(put("a", b"ours", partition="other"))
        process.kill()
        await asyncio.to_thread(process.communicate)
        async with asyncio.timeout(20):
            while True:
                with suppress(StoreBusyError):
                    await store.set(put("a", b"ours"))
                    break


async def test_a_server_that_hangs_is_told_in_time(new_server: NewServer) -> None:
    server = new_server("postgresql")
    async with from_url(server.fresh_url() + "&request_timeout=1") as store:
        await store.set(put("a", b"1"))
        await anext(store.watch("", ""))
        server.pause()
        attempts = (
            store.set(put("b")),
            value_of(store, "a"),
            store.ping(),
            store.delete_with_prefix("", "a"),
        )
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes), outcomes
        server.resume()
        await store.set(put("b"))
        assert await value_of(store, "a") == b"1"


async def test_callers_that_go_away_disturb_nobody(url: str) -> None:
    async with from_url(url + "&readers=1") as store:
        await store.bulk_set([put(f"a||{n}", b"x" * 1000) for n in range(1000)])
        for delay in range(30):
            scan = store.scan("", "", "")
            tasks: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(anext(scan)),
                asyncio.ensure_future(store.multi([put("x"), put("y")])),
                asyncio.ensure_future(store.delete_with_prefix("", "b")),
                asyncio.ensure_future(store.ping()),
            ]
            await asyncio.sleep(delay / 10_000)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert len([item async for item in store.scan("", "", "")]) in {1000, 1002}


ENDS_WITHOUT_CLOSING = """
import asyncio, sys
from persistence import *

async def main():
    store = connect(sys.argv[1])
    await store.init(Metadata())
    changes = store.watch("", "")
    await anext(changes)
    writes = [asyncio.create_task(store.set(SetRequest(key=str(n), value=b""))) for n in range(100)]
    reads = [asyncio.create_task(store.get(GetRequest(key=str(n)))) for n in range(100)]
    await asyncio.sleep(float(sys.argv[2]))

asyncio.run(main())
print("done")
"""


@pytest.mark.parametrize("seconds", ["0", "0.001", "0.01"])
async def test_a_program_ends_without_closing_its_store(url: str, seconds: str) -> None:
    process = start_python(ENDS_WITHOUT_CLOSING, url, seconds)
    output, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert output == "done\n", errors
