"""From a URL to a store."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from persistence.errors import InvalidRequestError, UnknownSchemeError
from persistence.store import Store

__all__ = ["ENTRY_POINT_GROUP", "connect"]

ENTRY_POINT_GROUP: Final = "persistence.stores"
"""Entry points of this group add schemes: the name is the scheme, the object a function from URL to store."""


def connect(url: str) -> Store:
    """A store for a URL, not yet open: use `async with`, or call `init`.

    * `memory://` is a new store in memory; stores of one `memory://name` share their data in this process.
    * `sqlite:///relative.db` and `sqlite:////absolute.db` are files; options stand in the query, in seconds:
      `sqlite:///relative.db?busy_timeout=10` (also `cleanup_interval` and `open_timeout`).
    * Other schemes are found by entry points of the group `persistence.stores`.

    Raises:
        UnknownSchemeError: there is no store for the scheme, or its client library is not installed.
        InvalidRequestError: the URL is not one that the store understands.
    """
    # No message quotes the URL, because it may hold a password.
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    builtin = _BUILTIN.get(scheme)
    if builtin is not None:
        return builtin(urlsplit(url, allow_fragments=False))
    installed = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if scheme in installed.names:
        return _load(installed[scheme], url)
    known = ", ".join(sorted({*_BUILTIN, *installed.names}))
    if not scheme:
        raise UnknownSchemeError(f"the URL of a store begins with a scheme and `://`; known schemes: {known}")
    raise UnknownSchemeError(f"no store is installed for the scheme {scheme!r}; known schemes: {known}")


def _load(entry_point: importlib.metadata.EntryPoint, url: str) -> Store:
    try:
        factory: Callable[[str], Store] = entry_point.load()
    except ImportError as error:
        raise UnknownSchemeError(
            f"the store for the scheme {entry_point.name!r} cannot be imported: {error}"
        ) from error
    return factory(url)


def _memory(url: SplitResult) -> Store:
    from persistence.stores.memory import MemoryStore  # noqa: PLC0415  imported on use only

    if url.path.strip("/") or url.query:
        raise InvalidRequestError("a memory URL is memory:// or memory://name, without path and options")
    return MemoryStore(unquote(url.netloc))


def _sqlite(url: SplitResult) -> Store:
    from persistence.stores.sqlite import SqliteOptions, SqliteStore  # noqa: PLC0415  imported on use only

    if url.netloc:
        raise InvalidRequestError(
            "a sqlite URL has three slashes before a relative path and four before an absolute one: "
            "sqlite:///relative.db, sqlite:////absolute.db"
        )
    path = unquote(url.path.removeprefix("/"))
    if path in {"", ":memory:"}:
        raise InvalidRequestError("a sqlite URL names a file; use memory:// for a store in memory")
    return SqliteStore(path, options=SqliteOptions().changed(_options(url)))


def _options(url: SplitResult) -> dict[str, str]:
    pairs = parse_qsl(url.query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) != len(pairs):
        raise InvalidRequestError(f"an option is given twice: {', '.join(name for name, _ in pairs)}")
    return options


_BUILTIN: Final[Mapping[str, Callable[[SplitResult], Store]]] = {"memory": _memory, "sqlite": _sqlite}
