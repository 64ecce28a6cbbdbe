"""What all servers have in common: a process on loopback whose data survive a restart."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote

import attrs

from tests.support.servers._process import (
    Account,
    AddressInUseError,
    Folder,
    StartError,
    await_that,
    free_port,
    has_stopped,
    running_of,
)
from tests.support.servers._tls import Certificate

_ATTEMPTS: Final = 5
_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 20
_QUOTED_BYTES: Final = 3000


@attrs.frozen
class Options:
    """What is asked of a server."""

    durable: bool = False  # what it has acknowledged survives a crash of the machine
    tls: bool = False
    password: str | None = None
    own: bool = False  # one that can be killed, whatever the environment names


class Server(ABC):
    """A database server that tests start, stop and kill.

    A server that is not `durable` keeps its data when it is stopped, and those that write at every commit
    (all but Valkey and Redis) also when it is killed: what it spares is the wait for the disk.
    """

    name: str
    port: int
    ca_file: Path | None = None
    controllable: bool = True  # False for a server that somebody else runs, which has only its URLs

    @property
    @abstractmethod
    def url(self) -> str:
        """URL of a place on the server, always the same."""

    @abstractmethod
    def fresh_url(self) -> str:
        """URL of an empty place that nobody else has."""

    @abstractmethod
    def start(self) -> None:
        """Start again, on the same port and data; the server is ready when this returns."""

    @abstractmethod
    def stop(self) -> None:
        """Stop as an administrator would; nothing if it is not running."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL all processes of the server; they are gone when this returns."""

    @abstractmethod
    def pause(self) -> None:
        """SIGSTOP all processes of the server: connections stay open and nobody answers."""

    @abstractmethod
    def resume(self) -> None:
        """SIGCONT what `pause` has stopped."""

    @abstractmethod
    def destroy(self) -> None:
        """Kill the server if it runs, and remove its data."""


class LocalServer(Server):
    """A server of one process that we have started, which may have children."""

    stop_signal: ClassVar = signal.SIGTERM

    def __init__(self, name: str, options: Options, owner: Account | None = None) -> None:
        self.name = name
        self.port = 0
        self.options = options
        self.folder = Folder(owner)
        self.data = self.folder.path / "data"
        self.output = self.folder.path / "output"
        self.certificate = Certificate.issue(self.folder) if options.tls else None
        self.ca_file = self.certificate.ca if self.certificate else None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def make_data(self) -> None:
        """Before the first start."""

    @abstractmethod
    def command(self) -> list[str]:
        """The server's command line, for `port`."""

    @abstractmethod
    def ready(self, pid: int) -> bool:
        """Whether the server would serve a client. OSError: it would not."""

    def set_up(self) -> None:
        """After the first start: users, databases."""

    def choose_ports(self) -> None:
        """Where to listen, from now on."""
        self.port = free_port()

    def family(self, pid: int) -> list[int]:
        """All processes of the server."""
        return [pid]

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError(f"{self.name} is running already")
        if self.port:
            self._start_again()
            return
        self.make_data()
        for attempt in range(_ATTEMPTS):
            self.choose_ports()
            try:
                self._launch()
            except AddressInUseError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                break
        self.set_up()

    def stop(self) -> None:
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def kill(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGSTOP)  # so that it starts no more children
        family = self.family(self._process.pid)
        send(signal.SIGKILL, family)
        self._process.wait()
        await_that(lambda: not running_of(family), f"{self.name} has processes that survive SIGKILL")
        self._forget()

    def pause(self) -> None:
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        family = self.family(process.pid)
        self.folder.note(family)  # a stopped child would not notice that its parent is gone
        send(signal.SIGSTOP, family)
        # The signal is sent; each thread stops when it gets to it, and may answer somebody until then.
        await_that(lambda: all(map(has_stopped, family)), f"{self.name} does not stop")

    def resume(self) -> None:
        send(signal.SIGCONT, reversed(self.family(self._running().pid)))

    def destroy(self) -> None:
        self.kill()
        self.folder.remove()

    def run(self, *command: str) -> None:
        """Run a tool of the server's as the server's user, to its end."""
        process = self.folder.spawn(command, self.output)
        try:
            if process.wait(_START_SECONDS) != 0:
                raise StartError(f"{' '.join(command)} failed: {self._written()}")
        finally:
            process.kill()
            process.wait()
            self.folder.forget()

    def _start_again(self) -> None:
        def launched() -> bool:
            try:
                self._launch()
            except AddressInUseError:
                return False
            return True

        await_that(launched, f"port {self.port} of {self.name} is still taken", seconds=10)

    def _launch(self) -> None:
        before = self.output.stat().st_size if self.output.exists() else 0
        process = self._process = self.folder.spawn(self.command(), self.output)

        def ready() -> bool:
            if process.poll() is not None:
                raise StartError(f"ended with status {process.returncode}")
            try:
                return self.ready(process.pid)
            except OSError:
                return False

        try:
            await_that(ready, "not ready", _START_SECONDS)
        except (StartError, TimeoutError) as error:
            self.kill()
            written = self._written(before)
            kind = AddressInUseError if "address already in use" in written.lower() else StartError
            raise kind(f"{self.name}: {error}; it wrote:\n{written}") from None

    def _written(self, start: int = 0) -> str:
        return self.output.read_bytes()[start:][-_QUOTED_BYTES:].decode(errors="replace").strip()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process

    def _forget(self) -> None:
        self._process = None
        self.folder.forget()


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Signal processes of which some may just have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def random_name() -> str:
    """A name that is an identifier everywhere, for a place of one test."""
    return f"t_{secrets.token_hex(4)}"


def query(options: Mapping[str, str | Path]) -> str:
    """The options of a URL, in their order."""
    return "&".join(f"{name}={quote(str(value), safe='/:')}" for name, value in options.items())


def user_info(user: str, password: str | None) -> str:
    """The part of a URL before the host."""
    if password is None:
        return f"{user}@" if user else ""
    return f"{user}:{quote(password, safe='')}@"
