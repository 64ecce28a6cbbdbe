"""Databases of every kind for the crash programs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.servers import KINDS, running

ALL_KINDS: Final = ("sqlite", *KINDS)


@contextmanager
def database_of(kind: str) -> Iterator[str]:
    """The URL of an empty database."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="hsm-") as folder:
            yield f"sqlite:///{Path(folder) / 'state.db'}"
    else:
        with running(kind) as server:
            yield server.fresh_url()


def add_kinds(parser: argparse.ArgumentParser, kinds: tuple[str, ...], default: tuple[str, ...] = ()) -> None:
    """The option that chooses kinds of databases; all of `kinds` without it, unless there is a `default`."""
    words = f"some of {', '.join(kinds)}"
    parser.add_argument(
        "--kinds", nargs="+", choices=kinds, default=default or kinds, metavar="KIND", help=words
    )


def table(rows: list[list[object]]) -> str:
    """Rows under one another, the first of them being the head."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )
