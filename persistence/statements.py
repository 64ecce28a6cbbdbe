"""SQL in files beside the modules that use it: statements with names, and scripts of several statements."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping, Sequence

__all__ = ["named_statements", "script"]


def named_statements(package: str, file: str) -> Mapping[str, str]:
    """The statements of a file of a package, by the name in the line `-- :name` above each."""
    pieces = re.split(r"^-- :([a-z-]+)$", _read(package, file), flags=re.MULTILINE)[1:]
    return {name: statement.strip() for name, statement in zip(pieces[::2], pieces[1::2], strict=True)}


def script(package: str, file: str) -> Sequence[str]:
    """The statements of a file, each ending with a semicolon at the end of a line."""
    pieces = (piece.strip() for piece in re.split(r";\s*$", _read(package, file), flags=re.MULTILINE))
    return tuple(piece for piece in pieces if piece)


def _read(package: str, file: str) -> str:
    return importlib.resources.files(package).joinpath(file).read_text(encoding="utf-8")
