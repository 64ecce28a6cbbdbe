"""What a server process needs: a user that may run it, a port, and a folder that does not outlive the tests."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import attrs

# Where a process has a gRPC client, its handlers of forks break the child, which is forked whenever it is to run
# as another user. gRPC reads this when it is first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

# Below the range from which systems take the ports of clients: a client that dials a dead server again and
# again would otherwise get the server's own port one day, connect to itself, and keep the server from it.
_PORTS: Final = range(10_000, 32_000)

# Ends when the write end of its standard input does, that is with the process that made it, however that
# ends; unlike a parent-death signal it also works outside Linux and does not end with a mere thread.
_GUARD: Final = """
cat >/dev/null
for each in "$1"/pids/*; do kill -9 "${each##*/}"; done
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"""


class MissingServerError(Exception):
    """The server is not installed; the text names the package that brings it."""


class StartError(Exception):
    """The server did not start; the text ends with what it wrote."""


class AddressInUseError(StartError):
    """Somebody else took the port between our look at it and the server's."""


@attrs.frozen
class Account:
    """The user that a server drops to, since some refuse to run as root."""

    uid: int
    gid: int


def account(name: str) -> Account | None:
    """The user called so, or nobody; None if we are not root and stay who we are."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid)


class Folder:
    """A temporary folder that goes, and kills the processes noted in it, when this process is gone.

    Not pytest's `tmp_path`: other users cannot enter that one, and its name is too long for Unix sockets.
    """

    def __init__(self, owner: Account | None) -> None:
        self.owner = owner
        self.path = Path(tempfile.mkdtemp(prefix="hsm-"))
        self._pids = self.path / "pids"
        self._pids.mkdir()
        if owner is not None:
            os.chown(self.path, owner.uid, owner.gid)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def write(self, name: str, content: bytes) -> Path:
        """A file that only the folder's owner reads."""
        path = self.path / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        if self.owner is not None:
            os.chown(path, self.owner.uid, self.owner.gid)
        return path

    def note(self, pids: Iterable[int]) -> None:
        """Have the processes killed if this one ends without doing so."""
        for pid in pids:
            (self._pids / str(pid)).touch()

    def forget(self) -> None:
        """All noted processes are gone; their numbers may be somebody else's now."""
        for file in self._pids.glob("*"):
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        self._guard.communicate()

    def spawn(self, command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """Start a program as the folder's owner; its output is appended to a file."""
        with output.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.path,
                # Two MariaDB servers that are set up at the same moment mix up their temporary tables in /tmp.
                env=os.environ | {"TMPDIR": str(self.path)},
                start_new_session=True,
                user=self.owner.uid if self.owner else None,
                group=self.owner.gid if self.owner else None,
                extra_groups=[] if self.owner else None,
            )
        self.note([process.pid])
        return process


def free_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    while True:
        port = secrets.choice(_PORTS)  # whatever seed a test has given `random`
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def on_path(*names: str) -> Path | None:
    """The first of the programs that is on PATH, or where Debian puts servers, which users' PATHs leave out."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    found = [program for name in names if (program := shutil.which(name, path=path)) is not None]
    return Path(found[0]) if found else None


def await_that(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {seconds} s")
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Processes that the process has started and that still run."""
    return [child for child, parent in _parents().items() if parent == pid]


def running_of(pids: Iterable[int]) -> set[int]:
    """Those of the processes that have not ended; one that nobody has waited for counts as ended."""
    return set(pids) & _parents().keys()


def has_stopped(pid: int) -> bool:
    """Whether every thread of a process stands still after SIGSTOP; without `/proc` nobody can tell."""
    states: list[str] = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            # What stands before the last bracket is the program's name.
            states.append(stat.read_text().rpartition(")")[2].split()[0])
        except OSError:
            continue  # the thread has ended
    return all(state in "TtZX" for state in states)


def _parents() -> dict[int, int]:
    # Debian's small images have no `ps`, other systems no `/proc`.
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, check=True
        ).stdout
        rows = [line.split() for line in listing.decode().splitlines()]
        return {int(row[0]): int(row[1]) for row in rows if not row[2].startswith("Z")}
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue  # it has just ended
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state not in {"Z", "X"}:
            parents[int(folder.name)] = int(parent)
    return parents
