"""The scripts, from the .lua files beside this module."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import Final

import attrs

__all__ = ["CLAIM", "COMMIT", "DELETE", "PAGE", "SCRIPTS", "TIDY", "Script"]


@attrs.frozen
class Script:
    """A script that a server keeps under its hash.

    Attributes:
        text: in Lua.
        digest: SHA-1 in hexadecimal digits, by which it is called.
    """

    text: bytes
    digest: bytes

    def call(self, keys: Sequence[bytes], arguments: Sequence[bytes] = ()) -> list[bytes]:
        """The command that calls it."""
        return [b"EVALSHA", self.digest, b"%d" % len(keys), *keys, *arguments]


def _script(name: str) -> Script:
    text = importlib.resources.files("persistence.stores.redis").joinpath(f"{name}.lua").read_bytes()
    # The server's own choice of a name for a script; nothing depends on its strength.
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


CLAIM: Final = _script("claim")
COMMIT: Final = _script("commit")
DELETE: Final = _script("delete")
PAGE: Final = _script("page")
TIDY: Final = _script("tidy")

SCRIPTS: Final = (CLAIM, COMMIT, DELETE, PAGE, TIDY)
"""All of them."""
