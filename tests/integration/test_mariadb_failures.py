"""The MariaDB store when something breaks: the server, the wire, another process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from persistence import (
    CommitOutcomeUnknownError,
    DeleteRequest,
    ETagMismatchError,
    GetRequest,
    SetRequest,
    StoreBusyError,
    StoreUnavailableError,
)
from persistence.stores.mariadb import MariaDBStore, from_url
from tests.conftest import NewServer
from tests.support.relay import Relay
from tests.support.servers import Server
from tests.support.servers._mariadb import MariadbServer
from tests.support.stores import start_python

pytestmark = pytest.mark.server

ServerOf = Callable[[str], Server]


def put(key: str, value: bytes = b"", *, etag: str | None = None) -> SetRequest:
    return SetRequest(partition="p", key=key, value=value, etag=etag)


async def value_of(store: MariaDBStore, key: str) -> bytes | None:
    return (await store.get(GetRequest(partition="p", key=key))).data


class Wire:
    """Passes on what a store and its server say, until it is told to cut the connection at a commit.

    Attributes:
        cut: "" or when to cut: "before" the server has the commit, or "after" it has answered it; "stuck" is to
            keep the connection open and the answer to oneself.
        dead: new connections are refused from the next cut on.
        cuts: how often it has cut.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._parts = parts
        self._writers: list[asyncio.StreamWriter] = []
        self.cut = ""
        self.dead = False
        self.cuts = 0
        self.url = ""
        self._answered = asyncio.Event()

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**25)
        port = server.sockets[0].getsockname()[1]
        self.url = self._parts._replace(netloc=f"root@127.0.0.1:{port}").geturl()
        return server

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self.dead and self.cuts:
            writer.transport.abort()
            return
        host, port = self._target
        server_reader, server_writer = await asyncio.open_connection(host, port)
        self._writers.append(server_writer)
        silence = asyncio.Event()
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._to_server(reader, server_writer, writer, silence),
                self._to_store(server_reader, writer, silence),
            )
        writer.transport.abort()
        server_writer.transport.abort()

    async def _to_server(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        store: asyncio.StreamWriter,
        silence: asyncio.Event,
    ) -> None:
        while data := await reader.read(2**20):
            if not (self.cut and b";COMMIT" in data):
                server.write(data)
                continue
            cut, self.cut = self.cut, ""
            self.cuts += 1
            self._answered.clear()
            silence.set()
            if cut == "before":
                store.transport.abort()
                # The server keeps the transaction open a moment longer than we know of it.
                await asyncio.sleep(0.2)
                server.transport.abort()
                return
            server.write(data)
            if cut == "after":
                await self._answered.wait()
                store.transport.abort()
                return
        server.write_eof()

    async def _to_store(
        self, answers: asyncio.StreamReader, store: asyncio.StreamWriter, silence: asyncio.Event
    ) -> None:
        while data := await answers.read(2**20):
            if silence.is_set():
                self._answered.set()
            else:
                store.write(data)
        store.close()


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    wire = Wire(url)
    server = await wire.start()
    try:
        yield wire
    finally:
        server.close()
        wire.close()


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_has_taken_place_once(server_of: ServerOf, cut: str) -> None:
    async with wire_to(server_of("mariadb").fresh_url()) as wire, from_url(wire.url) as store:
        etag = await store.multi([put("key", b"1"), put("other", b"1")])
        wire.cut = cut
        new = await store.multi([put("key", b"2", etag=etag), DeleteRequest(partition="p", key="other")])
        assert wire.cuts == 1
        assert await value_of(store, "key") == b"2"
        assert await value_of(store, "other") is None
        assert (await store.get(GetRequest(partition="p", key="key"))).etag == new


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_lost_answer_to_deletes_alone_is_found_out_about(server_of: ServerOf, cut: str) -> None:
    async with wire_to(server_of("mariadb").fresh_url()) as wire, from_url(wire.url) as store:
        etag = await store.multi([put("key")])
        wire.cut = cut
        await store.delete(DeleteRequest(partition="p", key="key", etag=etag))
        assert wire.cuts == 1
        assert await value_of(store, "key") is None


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_that_cannot_be_asked_about_is_unknown(server_of: ServerOf, cut: str) -> None:
    url = server_of("mariadb").fresh_url()
    async with wire_to(url) as wire, from_url(f"{wire.url}?request_timeout=1") as store:
        await store.multi([put("key", b"1")])
        wire.cut, wire.dead = cut, True
        with pytest.raises(CommitOutcomeUnknownError, match="broke during a commit"):
            await store.multi([put("key", b"2")])
        wire.dead = False
        await store.multi([put("key", b"3")])
        assert await value_of(store, "key") == b"3"


async def test_a_commit_is_unknown_if_what_was_noted_is_gone(server_of: ServerOf) -> None:
    url = server_of("mariadb").fresh_url()
    async with wire_to(url) as wire, from_url(wire.url) as store, from_url(url) as admin:
        await store.multi([put("key", b"1")])
        await admin._opened().reader.run("DELETE FROM hsm_outcomes")
        wire.cut = "before"
        with pytest.raises(CommitOutcomeUnknownError):
            await store.multi([put("key", b"2")])


async def test_a_commit_that_is_never_answered_is_unknown(server_of: ServerOf) -> None:
    url = server_of("mariadb").fresh_url()
    async with wire_to(url) as wire, from_url(f"{wire.url}?request_timeout=1") as store:
        await store.multi([put("key", b"1")])
        wire.cut = "stuck"
        with pytest.raises(CommitOutcomeUnknownError):
            await store.multi([put("key", b"2")])
        await store.multi([put("key", b"3")])


async def test_the_store_goes_on_when_the_server_is_back(new_server: NewServer) -> None:
    server = new_server("mariadb")
    async with from_url(f"{server.url}?lanes=2") as store:
        for number in range(3):
            await store.multi([put("key", str(number).encode())])
            assert await value_of(store, "key") == str(number).encode()
            server.kill()
            with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
                await store.multi([put("key", b"lost")])
            with pytest.raises(StoreUnavailableError):
                await value_of(store, "key")
            with pytest.raises(StoreUnavailableError):
                await store.ping()
            server.start()
            await store.ping()
            assert await value_of(store, "key") == str(number).encode()


async def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing(new_server: NewServer) -> None:
    server = new_server("mariadb", durable=True)
    async with from_url(server.url) as store:
        acknowledged: dict[int, int] = {}
        enough = asyncio.Event()

        async def write(worker: int) -> None:
            etag = None
            for number in range(100_000):
                try:
                    etag = await store.multi([put(f"key/{worker}", str(number).encode(), etag=etag)])
                except (StoreUnavailableError, CommitOutcomeUnknownError):
                    return
                acknowledged[worker] = number
                if len(acknowledged) == 30 and min(acknowledged.values()) > 10:
                    enough.set()

        workers = [asyncio.create_task(write(worker)) for worker in range(30)]
        await enough.wait()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        # Those whose commit was under way have asked what became of it, and all may have gone on since.
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for worker, number in acknowledged.items():
            found = int(await value_of(store, f"key/{worker}") or b"-1")
            assert number <= found <= number + 1


async def test_a_server_that_hangs_is_unavailable_in_time(new_server: NewServer) -> None:
    server = new_server("mariadb")
    options = "request_timeout=0.5&connect_timeout=0.5"
    async with from_url(f"{server.url}?{options}") as store:
        await store.multi([put("key", b"1")])
        await value_of(store, "key")
        server.pause()
        async with asyncio.timeout(20):
            for _ in range(2):
                # First, because when it has failed the server surely has stopped.
                with pytest.raises(StoreUnavailableError):
                    await value_of(store, "key")
                with pytest.raises(StoreUnavailableError):
                    await store.multi([put("key", b"2")])
            with pytest.raises(StoreUnavailableError):
                await from_url(f"{server.url}?{options}").__aenter__()
        server.resume()
        await store.multi([put("key", b"3")])
        assert await value_of(store, "key") == b"3"
        server.pause()
    server.resume()


STOPPED_WRITER = """
import asyncio, os, signal, sys
from persistence import ETagMismatchError, SetRequest
from persistence.stores.mariadb import from_url, writing

decide = writing.decide

def stop_and_decide(*arguments):
    writing.decide = decide
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return decide(*arguments)

async def main():
    async with from_url(sys.argv[1]) as store:
        etag = await store.multi([SetRequest(partition="p", key="key", value=b"1")])
        writing.decide = stop_and_decide
        try:
            await store.multi([SetRequest(partition="p", key="key", value=b"stopped", etag=etag)])
        except ETagMismatchError:
            print("lost", flush=True)

asyncio.run(main())
"""


async def test_a_process_that_is_stopped_holds_its_locks_for_a_short_time(server_of: ServerOf) -> None:
    url = server_of("mariadb").fresh_url() + "?idle_timeout=1"
    process = start_python(STOPPED_WRITER, url)
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "locked\n"
        async with from_url(url) as store:
            await store.multi([put("key", b"2")])
            process.send_signal(signal.SIGCONT)
            output, errors = await asyncio.to_thread(process.communicate, timeout=60)
            assert (output, process.returncode) == ("lost\n", 0), errors
            assert await value_of(store, "key") == b"2"
    finally:
        process.kill()
        process.communicate()


async def test_a_lock_that_somebody_keeps_is_busy(server_of: ServerOf) -> None:
    async with from_url(server_of("mariadb").fresh_url() + "?lock_timeout=1") as store:
        etag = await store.multi([put("key", b"1")])
        session = await store._opened().pool._open_session()
        await session.run(f"START TRANSACTION;{store._opened().statements.lock(['p'])[0]}")
        with pytest.raises(StoreBusyError, match="locked by somebody else"):
            await store.multi([put("key", b"2", etag=etag)])
        await store.multi([SetRequest(partition="q", key="key", value=b"")])
        assert await value_of(store, "key") == b"1"
        await session.run("ROLLBACK")
        await store.multi([put("key", b"3", etag=etag)])
        with pytest.raises(ETagMismatchError):
            await store.multi([put("key", b"4", etag=etag)])
        await session.close()


async def test_a_connection_that_the_server_ends_is_replaced(new_server: NewServer) -> None:
    server = new_server("mariadb")
    async with from_url(f"{server.url}?lanes=3&readers=3") as store, from_url(server.url) as other:
        await asyncio.gather(
            *(store.set(SetRequest(partition=str(n), key="k", value=b"")) for n in range(20))
        )
        for _ in range(3):
            (answer,) = await other._opened().reader.run("SHOW PROCESSLIST")
            mine = [row[0] for row in answer.rows if row[4] == "Sleep"]
            session = await other._opened().pool._open_session()
            for number in mine:
                await session.run(f"KILL {number}")
            await session.close()
            writes = (store.set(SetRequest(partition=str(n), key="k", value=b"")) for n in range(20))
            reads = (store.get(GetRequest(partition=str(n), key="k")) for n in range(20))
            await asyncio.gather(*writes)
            assert all(response.etag for response in await asyncio.gather(*reads))


async def test_lock_rows_that_vanish_are_made_again(server_of: ServerOf) -> None:
    async with from_url(server_of("mariadb").fresh_url()) as store:
        etag = await store.multi([put("key", b"1")])
        await store._opened().reader.run("DELETE FROM hsm_locks")
        await store.multi([put("key", b"2", etag=etag)])
        (answer,) = await store._opened().reader.run("SELECT p FROM hsm_locks")
        assert answer.rows == ((b"p",),)


async def test_a_server_that_becomes_read_only_takes_no_writes_until_it_is_not(new_server: NewServer) -> None:
    server = new_server("mariadb")
    assert isinstance(server, MariadbServer)
    server.sql(
        "CREATE USER plain@'%'; GRANT ALL ON hsm.* TO plain@'%'; DELETE FROM mysql.global_priv WHERE User=''"
    )
    server.sql("FLUSH PRIVILEGES")
    async with from_url(server.url.replace("root@", "plain@")) as store:
        await store.multi([put("key", b"1")])
        server.sql("SET GLOBAL read_only=1")
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=r"read.only"):
                await store.multi([put("key", b"2")])
        assert await value_of(store, "key") == b"1"
        with pytest.raises(StoreUnavailableError, match="read_only is on"):
            await from_url(server.url).__aenter__()
        server.sql("SET GLOBAL read_only=0")
        await store.multi([put("key", b"3")])


async def test_nothing_is_read_from_a_server_whose_place_another_one_has_taken(new_server: NewServer) -> None:
    first, second = new_server("mariadb"), new_server("mariadb")
    for server in (first, second):
        assert isinstance(server, MariadbServer)
        server.sql(
            "CREATE USER plain@'%'; GRANT ALL ON hsm.* TO plain@'%';"
            " DELETE FROM mysql.global_priv WHERE User=''"
        )
        server.sql("FLUSH PRIVILEGES")
    assert isinstance(first, MariadbServer)
    async with Relay.to(first.port) as name, from_url(second.url) as successor:
        url = urlsplit(first.url)._replace(netloc=f"plain@127.0.0.1:{name.port}").geturl()
        async with from_url(url) as store:
            await store.multi([put("key", b"1")])
            assert await value_of(store, "key") == b"1"
            await successor.multi([put("key", b"2")])
            first.sql("SET GLOBAL read_only=1")
            name.redirect(second.port)
            with pytest.raises(StoreUnavailableError, match=r"read.only"):
                await store.multi([put("other")])
            await store.multi([put("other")])
            assert await value_of(store, "key") == b"2"
