"""Journals for tests on every kind of database: one database a module, opened anew by each test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

import persistence
from hsm.testing import FaultyStore
from hsm.testing.faults import Call
from persistence import EngineStore
from persistence.journal import Clock, Journal, JournalOptions
from tests.support.servers import Server

KINDS: Final = [
    "memory",
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.server),
    pytest.param("valkey", marks=pytest.mark.server),
]

_numbers: Final = itertools.count()
_SOON: Final = JournalOptions(poll_interval=timedelta(milliseconds=20))


def database_url(kind: str, folder: Path, server_of: Callable[[str], Server]) -> str:
    """The URL of an empty database."""
    number = next(_numbers)
    if kind == "memory":
        return f"memory://journal-{number}"
    if kind == "sqlite":
        return f"sqlite:///{folder / f'{number}.db'}"
    return server_of(kind).fresh_url()


class World:
    """A store that can fail, and journals on it, each as in a process of its own."""

    def __init__(self, store: EngineStore) -> None:
        self.store = store
        self.faulty = FaultyStore(store)
        self.namespace = f"test-{next(_numbers)}"

    def journal(self, clock: Clock | None = None) -> Journal:
        """A journal on the store that can fail."""
        return Journal(self.faulty, self.namespace, options=_SOON, clock=clock)

    def other_journal(self, clock: Clock | None = None) -> Journal:
        """A journal of somebody else, for whom nothing fails."""
        return Journal(self.store, self.namespace, options=_SOON, clock=clock)


@asynccontextmanager
async def world_of(url: str) -> AsyncIterator[World]:
    """A world on a database."""
    async with persistence.connect(url) as opened:
        yield World(persistence.require(opened, EngineStore))


def before_writes(step: Callable[[], Awaitable[object]], *, times: int) -> Callable[[Call], Awaitable[None]]:
    """A hook that does something just before each of the next transactions, as somebody else might."""
    left = times

    async def hook(call: Call) -> None:
        nonlocal left
        if call.method == "multi" and left:
            left -= 1
            await step()

    return hook
