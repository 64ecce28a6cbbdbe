"""Opening a database for a command, and finding the registry that goes with it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from hsm.cli._errors import CommandError, one_line
from hsm.components import callback
from hsm.components.callback import Outcome, Refused, Request
from hsm.engine import Engine, EngineOptions
from hsm.registry import Registry
from persistence import EngineStore, Metadata, Store, connect, require
from persistence.backends import MEMORY, backend_of

__all__ = [
    "NAMESPACE",
    "URL_VARIABLE",
    "import_registry",
    "named_by_environment",
    "open_any",
    "open_reader",
    "open_store",
    "refuse_memory",
]

NAMESPACE: Final = "deliver"
"""Where deliveries are kept among the executions of a database."""

URL_VARIABLE: Final = "HSM_DB"
"""The environment variable that names a database: other users cannot read it, as they can arguments."""


def named_by_environment() -> str:
    """The URL of the database that the environment names.

    Raises:
        CommandError: it names none.
    """
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise CommandError(f"--db without a URL takes it from the variable {URL_VARIABLE}, which is not set")
    return url


@asynccontextmanager
async def open_any(url: str, *, create: bool = True) -> AsyncGenerator[Store, None]:
    """The store of a URL, until the block ends; without `create`, only what exists is opened.

    Stores that are not ours need not know the option, and are opened in the one way they have.
    """
    known = backend_of(url) not in {None, MEMORY}
    store = connect(url)
    try:
        await store.init(Metadata({"create": "false"} if known and not create else {}))
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def open_store(url: str, *, create: bool = True) -> AsyncGenerator[EngineStore, None]:
    """The same for an engine."""
    async with open_any(url, create=create) as store:
        yield require(store, EngineStore)


@asynccontextmanager
async def open_reader(url: str, registry: str | None = None) -> AsyncGenerator[Engine, None]:
    """An engine on an existing database that runs no task. It knows `registry`, or else the callback."""
    known = _callbacks() if registry is None else import_registry(registry)
    refuse_memory(url)
    options = EngineOptions(create=False)
    async with (
        open_store(url, create=False) as store,
        Engine(known, store, options, run_tasks=False) as engine,
    ):
        yield engine


def refuse_memory(url: str) -> None:
    """Return unless the database is gone with each process.

    Raises:
        CommandError: it is.
    """
    if backend_of(url) is MEMORY:
        raise CommandError("memory:// is a new, empty database in each process: take one that stays")


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
            f"the registry {name!r} cannot be imported: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(found, Registry):
        raise CommandError(f"{name!r} is no Registry, and no function that makes one")
    return found


def _callbacks() -> Registry:
    registry = Registry()
    callback.register(registry, _send_nothing)
    return registry


async def _send_nothing(_: Request) -> Outcome:
    return Refused("this process sends nothing")
