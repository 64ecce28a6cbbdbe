"""A server that somebody else runs, named by a URL in the environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from tests.support.servers._process import MissingServerError, on_path
from tests.support.servers._server import Server, query, random_name

_PLACES: Final = {"postgresql": "schema", "pgbouncer": "schema", "etcd": "prefix"} | dict.fromkeys(
    ["valkey", "redis", "valkey-cluster"], "prefix"
)
_SEPARATORS: Final = {"postgresql": "", "pgbouncer": "", "etcd": "/"}


def variable(kind: str) -> str:
    """The environment variable that names a server of this kind."""
    return f"HSM_TEST_{kind.upper().replace('-', '_')}_URL"


def external_server(kind: str) -> ExternalServer | None:
    """The server that the environment names."""
    url = os.environ.get(variable(kind))
    return ExternalServer(kind, url) if url else None


class ExternalServer(Server):
    """Has places for tests, which stay behind, and cannot be started or stopped."""

    controllable = False

    def __init__(self, kind: str, url: str) -> None:
        self.name = kind
        self._url = urlsplit(url)
        self._options = dict(parse_qsl(self._url.query))
        self.port = self._url.port or 0
        ca_file = self._options.get("tls_ca") or self._options.get("sslrootcert")
        self.ca_file = Path(ca_file) if ca_file else None

    @property
    def url(self) -> str:
        return self._url.geturl()

    def fresh_url(self) -> str:
        name = random_name()
        if self.name == "mariadb":
            _create_database(self._url, self._options, name)
            return self._url._replace(path=f"/{name}").geturl()
        place = {_PLACES[self.name]: name + _SEPARATORS.get(self.name, ":")}
        return self._url._replace(query=query(self._options | place)).geturl()

    def start(self) -> None:
        self._refuse("started")

    def stop(self) -> None:
        self._refuse("stopped")

    def kill(self) -> None:
        self._refuse("killed")

    def pause(self) -> None:
        self._refuse("paused")

    def resume(self) -> None:
        self._refuse("resumed")

    def destroy(self) -> None:
        """The server stays."""

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(
            f"{self.name} cannot be {what}: it is not ours; unset {variable(self.name)} for this test"
        )


def _create_database(url: SplitResult, options: dict[str, str], name: str) -> None:
    client = on_path("mariadb", "mysql")
    if client is None:
        raise MissingServerError("MariaDB's client is missing: install Debian's mariadb-client")
    command = [
        str(client),
        "--no-defaults",
        "--protocol=tcp",
        f"--host={url.hostname}",
        f"--port={url.port or 3306}",
    ]
    command.append(f"--user={unquote(url.username or 'root')}")
    if "tls_ca" in options:
        command.append(f"--ssl-ca={options['tls_ca']}")
    environment = os.environ | ({"MYSQL_PWD": unquote(url.password)} if url.password else {})
    subprocess.run([*command, f"--execute=CREATE DATABASE {name}"], env=environment, check=True, timeout=30)
