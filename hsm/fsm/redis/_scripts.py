"""The scripts, from the .lua files beside this module."""

from __future__ import annotations

import hashlib
import importlib.resources
from typing import Final

from persistence.stores.redis.scripts import Script

__all__ = [
    "ACCEPT",
    "COMMIT",
    "CONFIGURE",
    "DECIDE",
    "FINISH",
    "IDLE",
    "MEMBER",
    "NOTIFY",
    "SCRIPTS",
    "SETTLE",
    "digest",
]


def _script(name: str) -> Script:
    text = importlib.resources.files("hsm.fsm.redis").joinpath(f"{name}.lua").read_bytes()
    return Script(text, digest(text))


def digest(text: bytes) -> bytes:
    """SHA-1 in hexadecimal digits, as scripts work it out."""
    # The servers know no other. It tells two writers of one key apart, who have no reason to make collisions.
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


ACCEPT: Final = _script("accept")
COMMIT: Final = _script("commit")
CONFIGURE: Final = _script("configure")
DECIDE: Final = _script("decide")
FINISH: Final = _script("finish")
IDLE: Final = _script("idle")
MEMBER: Final = _script("member")
NOTIFY: Final = _script("notify")
SETTLE: Final = _script("settle")

SCRIPTS: Final = (ACCEPT, COMMIT, CONFIGURE, DECIDE, FINISH, IDLE, MEMBER, NOTIFY, SETTLE)
"""All of them."""
