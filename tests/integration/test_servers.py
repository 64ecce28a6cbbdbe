"""The servers that other tests stand on: they start, answer, can be killed, and keep what they have."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import asyncmy
import psycopg
import pytest
import redis
import redis.cluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import NewServer
from tests.support.servers import KINDS, MissingServerError, Server, start_server
from tests.support.servers._etcd import Gateway
from tests.support.servers._process import await_that, running_of
from tests.support.servers._tls import client_context
from tests.support.stores import start_python

pytestmark = pytest.mark.server

# The wheel of Valkey has no TLS. A cluster takes two seconds to start, and has its test together with passwords.
ENCRYPTED_KINDS: Final = ("postgresql", "mariadb", "redis", "etcd")
SINGLE_KINDS: Final = tuple(kind for kind in KINDS if kind != "valkey-cluster")
PASSWORD: Final = "it's/@ \\secret:"

START_AND_TELL: Final = """
import sys
from tests.support.servers import start_server
from tests.support.servers._server import LocalServer
server = start_server("postgresql", own=True)
assert isinstance(server, LocalServer)
server.pause()
print(server.folder.path, *(file.name for file in (server.folder.path / "pids").iterdir()), flush=True)
sys.stdin.read()
"""


class Client:
    """Writes and reads one value, by a server's URL and nothing else."""

    def __init__(self, url: str) -> None:
        self.url: SplitResult = urlsplit(url)
        self.options = dict(parse_qsl(self.url.query))
        self.port = self.url.port or 0
        self.password = unquote(self.url.password) if self.url.password else None
        ca_file = self.options.get("tls_ca")
        self.ca_file = Path(ca_file) if ca_file else None

    def put(self, value: str) -> None:
        raise NotImplementedError

    def get(self) -> str:
        raise NotImplementedError


class PostgresqlClient(Client):
    def put(self, value: str) -> None:
        self._run("CREATE TABLE kept AS SELECT %s::text AS value", value)

    def get(self) -> str:
        return str(self._run("SELECT value FROM kept"))

    def _run(self, statement: str, *arguments: str) -> object:
        options = {name: value for name, value in self.options.items() if name != "schema"}
        url = self.url._replace(query=urlencode(options)).geturl()
        # autocommit: a server that fsyncs nothing keeps what is committed
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), arguments)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None


class MariadbClient(Client):
    def put(self, value: str) -> None:
        self._run("CREATE TABLE kept AS SELECT %s AS value", value)

    def get(self) -> str:
        return str(self._run("SELECT value FROM kept"))

    def _run(self, statement: str, *arguments: str) -> object:
        return asyncio.run(self._run_async(statement, *arguments))

    async def _run_async(self, statement: str, *arguments: str) -> object:
        async with (
            asyncmy.connect(
                host="127.0.0.1",
                port=self.port,
                user=self.url.username,
                password=self.password or "",
                db=self.url.path[1:],
                ssl=client_context(self.ca_file) if self.ca_file else None,
                autocommit=True,
            ) as connection,
            connection.cursor() as cursor,
        ):
            await cursor.execute(statement, arguments)
            row = await cursor.fetchone() if cursor.description else None
            return row[0] if row else None


class RedisClient(Client):
    def put(self, value: str) -> None:
        with self._connect() as client:
            client.set("kept", value)

    def get(self) -> str:
        with self._connect() as client:
            return str(client.get("kept"))

    def _connect(self) -> Any:
        kind = redis.cluster.RedisCluster if "cluster" in self.url.scheme else redis.Redis
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(self.ca_file)} if self.ca_file else {}
        retry = Retry(NoBackoff(), 0)
        return kind(
            host="127.0.0.1",
            port=self.port,
            password=self.password,
            decode_responses=True,
            retry=retry,
            **tls,
        )


class EtcdClient(Client):
    def put(self, value: str) -> None:
        self._gateway().call("/v3/kv/put", {"key": _base64("kept"), "value": _base64(value)})

    def get(self) -> str:
        answer = self._gateway().call("/v3/kv/range", {"key": _base64("kept")})
        return base64.b64decode(answer["kvs"][0]["value"]).decode()

    def _gateway(self) -> Gateway:
        gateway = Gateway(f"http{'s' if self.ca_file else ''}://127.0.0.1:{self.port}", self.ca_file)
        return gateway.as_root(self.password) if self.password else gateway


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


CLIENTS: Final[dict[str, Callable[[str], Client]]] = {
    "postgresql": PostgresqlClient,
    "mysql": MariadbClient,
    "redis": RedisClient,
    "rediss": RedisClient,
    "etcd": EtcdClient,
    "etcds": EtcdClient,
}


def client_of(url: str) -> Client:
    return CLIENTS[url.partition(":")[0].partition("+")[0]](url)


@pytest.mark.parametrize("kind", KINDS)
def test_durable_server_keeps_its_data_when_it_is_killed(kind: str, new_server: NewServer) -> None:
    server = new_server(kind, durable=True)
    client = client_of(server.url)
    client.put("value")
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    server.start()
    assert client.get() == "value"


@pytest.mark.parametrize("kind", SINGLE_KINDS)
def test_other_server_keeps_its_data_when_it_is_stopped_and_waits_when_it_is_paused(
    kind: str, new_server: NewServer
) -> None:
    server = new_server(kind)
    client = client_of(server.url)
    client.put("value")
    server.stop()
    server.start()
    server.pause()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as connection:
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    server.resume()
    assert client.get() == "value"


@pytest.mark.parametrize("kind", KINDS)
def test_server_demands_its_password(kind: str, new_server: NewServer) -> None:
    server = new_server(kind, password=PASSWORD, tls=kind == "valkey-cluster")
    url = server.fresh_url()
    assert len({url, server.fresh_url(), server.url}) == 3
    client = client_of(url)
    client.put("value")
    assert client.get() == "value"
    without = urlsplit(url)._replace(netloc=f"{client.url.username or ''}@127.0.0.1:{client.port}")
    with pytest.raises(Exception, match=r"(?i)password|authenticat|access denied|user name|bad request"):
        client_of(without.geturl()).put("other")


@pytest.mark.parametrize("kind", ENCRYPTED_KINDS)
def test_encrypted_server_talks_to_no_client_without_encryption(kind: str, new_server: NewServer) -> None:
    server = new_server(kind, tls=True)
    assert server.ca_file is not None
    client = client_of(server.fresh_url())
    client.put("value")
    assert client.get() == "value"
    plain = {"schema": "s", "sslmode": "disable"} if kind == "postgresql" else {}
    with pytest.raises(
        Exception, match=r"(?i)encryption|access denied|transport|connection|reset|remote end|bad request"
    ):
        client_of(client.url._replace(query=urlencode(plain)).geturl()).put("other")


def test_server_in_the_environment_is_used_and_not_controlled(
    server_of: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = server_of("mariadb")
    assert server_of("mariadb") is own
    monkeypatch.setenv("HSM_TEST_MARIADB_URL", own.url)
    monkeypatch.setenv("HSM_TEST_VALKEY_CLUSTER_URL", "redis+cluster://:secret@db:1/?prefix=a:&tls_ca=/ca")
    server = start_server("mariadb")
    assert not server.controllable
    client = client_of(server.fresh_url())
    client.put("value")
    assert client.get() == "value"
    cluster = start_server("valkey-cluster")
    assert cluster.fresh_url().startswith("redis+cluster://:secret@db:1/?prefix=t_")
    assert cluster.fresh_url().endswith(":&tls_ca=/ca")
    with pytest.raises(RuntimeError, match="unset HSM_TEST_VALKEY_CLUSTER_URL"):
        cluster.kill()


def test_missing_server_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingServerError, match=r"install Debian's redis-server$"):
        start_server("redis", own=True)


def test_server_and_its_folder_go_with_a_process_that_is_killed() -> None:
    process = start_python(START_AND_TELL)
    assert process.stdout is not None
    folder, *pids = process.stdout.readline().split()
    assert len(running_of(map(int, pids))) > 1  # stopped children do not see their parent go
    process.kill()
    process.communicate()
    await_that(lambda: not running_of(map(int, pids)), "the server is still there", seconds=10)
    await_that(lambda: not Path(folder).exists(), "the folder is still there", seconds=10)
