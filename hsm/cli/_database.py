"""Opening a database for a command."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from hsm.cli._errors import CommandError
from hsm.components import callback
from hsm.components.callback import Outcome, Refused, Request
from hsm.engine import Engine
from hsm.registry import Registry
from persistence import EngineStore, connect, require

__all__ = ["NAMESPACE", "open_reader", "open_store"]

NAMESPACE: Final = "deliver"
"""Where deliveries are kept among the executions of a database."""


@asynccontextmanager
async def open_store(url: str) -> AsyncGenerator[EngineStore, None]:
    """The store of a URL, until the block ends."""
    store = require(connect(url), EngineStore)
    async with store:
        yield store


@asynccontextmanager
async def open_reader(url: str) -> AsyncGenerator[Engine, None]:
    """An engine on an existing database that runs no task."""
    path = _file_of(url)
    if path is not None and not path.exists():
        raise CommandError(f"there is no database {path}")
    registry = Registry()
    callback.register(registry, _send_nothing)
    async with open_store(url) as store, Engine(registry, store, run_tasks=False) as engine:
        yield engine


def _file_of(url: str) -> Path | None:
    """The file of a database that is one: looking into it must not create it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme != "sqlite" or parts.netloc:
        return None
    return Path(unquote(parts.path.removeprefix("/")))


async def _send_nothing(_: Request) -> Outcome:
    return Refused("this process sends nothing")
