"""PgBouncer in front of a PostgreSQL server: it gives each transaction another of a few connections."""

from __future__ import annotations

import socket
from typing import Final
from urllib.parse import urlsplit

from tests.support.servers._postgresql import PostgresqlServer
from tests.support.servers._process import MissingServerError, account, on_path
from tests.support.servers._server import LocalServer, Options

CONNECTIONS: Final = 3
"""That it has to the server."""


class PgBouncer(LocalServer):
    """The pooler; `server` is what stands behind it."""

    def __init__(self, options: Options) -> None:
        program = on_path("pgbouncer")
        if program is None:
            raise MissingServerError("PgBouncer is missing: install Debian's pgbouncer")
        self._program = program
        self.server = PostgresqlServer(options)
        super().__init__("pgbouncer", options, account("postgres"))

    @property
    def url(self) -> str:
        return self._through(self.server.url)

    def fresh_url(self) -> str:
        return self._through(self.server.fresh_url())

    def _through(self, url: str) -> str:
        return urlsplit(url)._replace(netloc=f"postgres@127.0.0.1:{self.port}").geturl()

    def make_data(self) -> None:
        self.data.mkdir()
        self.server.start()

    def command(self) -> list[str]:
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={self.server.port} user=postgres pool_size={CONNECTIONS}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            "max_client_conn = 500",
            "server_login_retry = 0.2",
        ]
        return [str(self._program), str(self.folder.write("pgbouncer.ini", "\n".join(lines).encode()))]

    def ready(self, pid: int) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True

    def destroy(self) -> None:
        super().destroy()
        self.server.destroy()
