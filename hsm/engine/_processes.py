"""Which process a member is, so that one whose process is gone need not be waited for."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path
from typing import Final

from persistence.proto.execution_pb2 import MemberRow

__all__ = ["Presence", "is_gone"]

_numbers: Final = itertools.count(1)
_living: Final[set[int]] = set()


class Presence:
    """A member of this process, from its beginning to its `end`."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        _living.add(self._number)

    def row(self) -> MemberRow:
        """What others read of it."""
        pid = os.getpid()
        started = _started(pid) or 0
        return MemberRow(
            host=socket.gethostname(),
            place=_place() if started else "",
            pid=pid,
            started=started,
            number=self._number,
        )

    def end(self) -> None:
        """Nothing runs here any more."""
        _living.discard(self._number)


def is_gone(row: MemberRow) -> bool:
    """Whether a member's process, or its part of this process, has ended; False if nobody can tell here."""
    if not row.place or row.place != _place():
        return False
    started = _started(row.pid)
    if started is None:
        return False
    if started != row.started:
        return True
    return row.pid == os.getpid() and row.number not in _living


def _place() -> str:
    """This boot of this machine and this namespace of process ids; "" where there is no telling."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; 0 if it has ended, None if that is kept from us."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        # It may be there all the same, and hidden, as those of other users are with `hidepid`.
        return None if _exists(pid) else 0
    # The name in parentheses may hold anything.
    state, *fields = text.rpartition(")")[2].split()
    return 0 if state in {"Z", "X"} else int(fields[18])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
