"""`hsm stores`: which databases can be used, and what one of them can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs
from rich.console import Console
from rich.text import Text

from hsm.cli._database import open_any
from persistence import ENTRY_POINT_GROUP, Feature, HasDurability, HasServerVersion, Limits
from persistence.backends import BACKENDS, Backend, scheme_of

__all__ = ["describe_store", "list_stores"]

_DISTRIBUTION: Final = "hsm-toolkit"
_KIBIBYTE: Final = 1024
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB")


@attrs.frozen(kw_only=True)
class _Description:
    """What is known of a store; empty is what is not known.

    Attributes:
        name: of the database.
        schemes: of its URLs.
        example: a URL.
        client: the client library with its version, or the distribution that brings the store.
        install: the command that installs what is missing.
        server: what an open store is connected to.
        durability: what an open store can lose.
        features: what it can do.
        limits: what one request may hold.
    """

    name: str
    schemes: tuple[str, ...]
    example: str = ""
    client: str = ""
    install: str = ""
    server: str = ""
    durability: str = ""
    features: frozenset[Feature] | None = None
    limits: Limits | None = None


def list_stores(out: Console, *, as_json: bool) -> int:
    """Tell of all stores that are installed or could be; the exit status."""
    distributions = importlib.metadata.packages_distributions()
    stores = [_built_in(backend, distributions) for backend in BACKENDS]
    stores += _third_parties()
    if as_json:
        out.print_json(json.dumps([_as_json(store) for store in stores]))
        return 0
    for store in stores:
        _print(out, store)
    return 0


async def describe_store(out: Console, url: str, *, as_json: bool) -> int:
    """Open one store, without making anything there, and tell what it says of itself; the exit status."""
    async with open_any(url, create=False) as store:
        scheme = scheme_of(url)
        names = [backend.name for backend in BACKENDS if scheme in backend.schemes]
        description = _Description(
            name=names[0] if names else scheme,
            schemes=(scheme,),
            server=store.server_version if isinstance(store, HasServerVersion) else "",
            durability=store.durability if isinstance(store, HasDurability) else "",
            features=store.features,
            limits=store.limits,
        )
    if as_json:
        out.print_json(json.dumps(_as_json(description)))
    else:
        _print(out, description)
    return 0


def _built_in(backend: Backend, distributions: Mapping[str, Sequence[str]]) -> _Description:
    missing = not all(map(_is_installed, backend.requires))
    if not backend.extra:
        client, install = "part of Python", "a Python that is built with it"
    else:
        client = ", ".join(_version(module, distributions) for module in backend.requires)
        install = f"pip install '{_DISTRIBUTION}[{backend.extra}]'"
    return _Description(
        name=backend.name,
        schemes=backend.schemes,
        example=backend.example,
        client="" if missing else client,
        install=install if missing else "",
        features=backend.features,
        limits=backend.limits,
    )


def _third_parties() -> Iterator[_Description]:
    for found in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)):
        distribution = "" if found.dist is None else f"{found.dist.name} {found.dist.version}"
        yield _Description(name=found.name, schemes=(found.name,), client=distribution or found.value)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(module: str, distributions: Mapping[str, Sequence[str]]) -> str:
    """The distribution that a module is from, with its version."""
    for distribution in distributions.get(module, ()):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return module


def _print(out: Console, store: _Description) -> None:
    out.print(Text(store.name, "bold"))
    limits = store.limits
    lines = {
        "schemes": ", ".join(store.schemes),
        "example": store.example,
        "client": store.client,
        "install": store.install,
        "server": store.server,
        "features": "known when it is open" if store.features is None else _features(store.features),
        "transaction": limits and f"{limits.operations:,} operations, {_size(limits.transaction_bytes)}",
        "key": limits and f"{_size(limits.key_bytes)} with its partition",
        "value": limits and _size(limits.value_bytes),
        "durability": store.durability,
    }
    for name, text in lines.items():
        if text:
            out.print(Text.assemble((f"  {name:<13}", "dim"), text), soft_wrap=True)


def _features(features: frozenset[Feature]) -> str:
    return (
        ", ".join(feature.value for feature in Feature if feature in features) or "none but get, set, delete"
    )


def _size(size: int) -> str:
    """A number of bytes for people: `16 MiB`."""
    value, unit = float(size), 0
    while value >= _KIBIBYTE and unit < len(_UNITS) - 1:
        value /= _KIBIBYTE
        unit += 1
    return f"{value:.4g} {_UNITS[unit]}"


def _as_json(store: _Description) -> dict[str, object]:
    """The same for programs: sizes in bytes, without what is not known."""
    features = None if store.features is None else sorted(feature.value for feature in store.features)
    members: Mapping[str, object] = attrs.asdict(store) | {"features": features}
    return {name: value for name, value in members.items() if value not in ("", None)}
