"""Stores for tests: clocks that are set, stores on one database, and a model of what they must do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from persistence import EngineStore, KeysLikeStore, PrefixDeleteStore
from persistence.stores.memory import MemoryStore
from persistence.stores.sqlite import SqliteOptions, SqliteStore

REPOSITORY = Path(__file__).parents[2]


class FullStore(EngineStore, KeysLikeStore, PrefixDeleteStore, Protocol):
    """What the memory and the SQLite store have in common."""


@attrs.define
class SetClock:
    """A clock that goes on when it is told to, in nanoseconds since 1970."""

    nanoseconds: int = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        return self.nanoseconds

    def advance(self, seconds: float) -> None:
        self.nanoseconds += round(seconds * 1_000_000_000)

    async def wait(self, seconds: float) -> None:
        self.advance(seconds)


@attrs.frozen
class Backend:
    """Opens stores on one database, with a clock that the test sets."""

    name: str
    open_store: Callable[[], FullStore]
    clock: SetClock
    keeper: object = None


def memory_backend(name: str) -> Backend:
    clock = SetClock()
    keeper = MemoryStore(name, clock=clock)  # the data live as long as a store of the name does
    return Backend("memory", lambda: MemoryStore(name, clock=clock), clock, keeper)


def sqlite_backend(path: Path, options: SqliteOptions | None = None) -> Backend:
    clock = SetClock()
    return Backend("sqlite", lambda: SqliteStore(path, options=options, clock=clock), clock)


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "memory": lambda directory: memory_backend(str(directory)),
    "sqlite": lambda directory: sqlite_backend(directory / "state.db"),
}


def start_python(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a program in a process of its own; its standard streams are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_together(program: str, arguments: Sequence[Sequence[str]]) -> list[str]:
    """Run several processes of a program at once; what each has written, when all have succeeded."""
    processes = [start_python(program, *each) for each in arguments]
    outcomes = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, outcomes, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in outcomes]
