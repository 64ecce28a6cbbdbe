"""Names of registries and servers, and the ids that follow from them."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID, uuid5

from hsm.components.ping_registry.errors import InvalidNameError

__all__ = ["REGISTRY_SERVER", "index_id", "registry_id", "server_name"]

REGISTRY_SERVER: Final = "registry"
"""The name under which the daemon of the registry sends its own pings."""

_NAMES: Final = UUID("ecb02ec6-006d-429f-a378-9392612f9c61")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def registry_id(registry: str) -> UUID:
    """The id of a registry.

    Raises:
        InvalidNameError: the name is none: up to 64 letters, digits, `.`, `_` and `-`.
    """
    return uuid5(_NAMES, f"fsoreg:{_checked(registry)}")


def index_id(registry: str) -> UUID:
    """The id of the index of a registry's workflows.

    Raises:
        InvalidNameError: the name is none.
    """
    return uuid5(_NAMES, f"fsoregephwfl:{_checked(registry)}")


def server_name(server: str) -> str:
    """The name of a server.

    Raises:
        InvalidNameError: the name is none, or that of the daemon of the registry.
    """
    if server == REGISTRY_SERVER:
        raise InvalidNameError(f"{server!r} is the name of the registry's own daemon")
    return _checked(server)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidNameError(f"{name!r} is no name: up to 64 letters, digits, '.', '_' and '-'")
    return name
