"""Opening a database for a command, and finding the registry that goes with it."""

from __future__ import annotations

import importlib
import sys
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

__all__ = ["NAMESPACE", "import_registry", "open_reader", "open_store"]

NAMESPACE: Final = "deliver"
"""Where deliveries are kept among the executions of a database."""


@asynccontextmanager
async def open_store(url: str) -> AsyncGenerator[EngineStore, None]:
    """The store of a URL, until the block ends."""
    store = require(connect(url), EngineStore)
    async with store:
        yield store


@asynccontextmanager
async def open_reader(url: str, registry: str | None = None) -> AsyncGenerator[Engine, None]:
    """An engine on an existing database that runs no task. It knows `registry`, or else the callback."""
    known = _callbacks() if registry is None else import_registry(registry)
    path = _file_of(url)
    if path is not None and not path.exists():
        raise CommandError(f"there is no database {path}")
    async with open_store(url) as store, Engine(known, store, run_tasks=False) as engine:
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


def import_registry(name: str) -> Registry:
    """The registry called `module:name`, or that a function of this name makes.

    Raises:
        CommandError: there is none.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise CommandError(f"the registry {name!r} is not of the form module:name")
    # As `python -m` does; the script of an entry point does not.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        if callable(found):
            found = found()
    except (Exception, SystemExit) as error:
        raise CommandError(
            f"the registry {name!r} cannot be imported: {type(error).__name__}: {_one_line(error)}"
        ) from error
    if not isinstance(found, Registry):
        raise CommandError(f"{name!r} is no Registry, and no function that makes one")
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _callbacks() -> Registry:
    registry = Registry()
    callback.register(registry, _send_nothing)
    return registry


async def _send_nothing(_: Request) -> Outcome:
    return Refused("this process sends nothing")
