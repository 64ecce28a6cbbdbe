"""From a URL to a store."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Final

from persistence.backends import BACKENDS, Backend, backend_of, scheme_of
from persistence.errors import UnknownSchemeError
from persistence.store import Store

__all__ = ["ENTRY_POINT_GROUP", "connect"]

ENTRY_POINT_GROUP: Final = "persistence.stores"
"""Entry points of this group add schemes: the name is the scheme, the object a function from URL to store."""


def connect(url: str) -> Store:
    """A store for a URL, not yet open: use `async with`, or call `init`.

    * `memory://` is a new store in memory; stores of one `memory://name` share their data in this process.
    * `sqlite:///relative.db` and `sqlite:////absolute.db` are files.
    * `postgresql://`, `mysql://` (MariaDB, too), `redis://` (Valkey, too; `redis+cluster://` for a cluster)
      and `etcd://` are servers, each with an extra that brings its client library.
    * Other schemes are found by entry points of the group `persistence.stores`.

    Options stand in the query, times in seconds: `sqlite:///relative.db?busy_timeout=10`.

    Raises:
        UnknownSchemeError: there is no store for the scheme, or its client library is not installed.
        InvalidRequestError: the URL is not one that the store understands.
    """
    # No message quotes the URL, because it may hold a password.
    backend = backend_of(url)
    if backend is not None:
        return _built_in(backend)(url)
    scheme = scheme_of(url)
    installed = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if scheme in installed.names:
        return _load(installed[scheme], url)
    built_in = {scheme for backend in BACKENDS for scheme in backend.schemes}
    known = ", ".join(sorted(built_in | installed.names))
    if not scheme:
        raise UnknownSchemeError(f"the URL of a store begins with a scheme and `://`; known schemes: {known}")
    raise UnknownSchemeError(f"no store is installed for the scheme {scheme!r}; known schemes: {known}")


def _built_in(backend: Backend) -> Callable[[str], Store]:
    try:
        module = importlib.import_module(backend.module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in backend.requires:
            raise
        raise UnknownSchemeError(
            f"the client library for {backend.name} is not installed ({error});"
            f" install it with: pip install 'hsm-toolkit[{backend.extra}]'"
        ) from error
    from_url: Callable[[str], Store] = module.from_url
    return from_url


def _load(entry_point: importlib.metadata.EntryPoint, url: str) -> Store:
    try:
        factory: Callable[[str], Store] = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise UnknownSchemeError(
            f"the store for the scheme {entry_point.name!r} cannot be imported: {error}"
        ) from error
    return factory(url)
