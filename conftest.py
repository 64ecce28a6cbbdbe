"""The Python blocks of README.md and of the docs run as tests, in order, each page in a folder of its own.

Tests run in several processes, as most of them wait for something. What belongs together stays in one: the blocks
of a page, and the tests of one kind of server, so that there is one server of each kind.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from tests.support.servers import KINDS


def enter_temporary_folder(namespace: dict[str, Any]) -> None:
    """Pages may write files; none of them meets those of another page."""
    namespace["_folder"] = tempfile.TemporaryDirectory()
    namespace["_origin"] = Path.cwd()
    os.chdir(namespace["_folder"].name)


def leave_temporary_folder(namespace: dict[str, Any]) -> None:
    """Remove what the page wrote."""
    os.chdir(namespace["_origin"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/**/*.md"],
    setup=enter_temporary_folder,
    teardown=leave_temporary_folder,
).pytest()

_LONGEST_FIRST = sorted(KINDS, key=len, reverse=True)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay together."""
    for item in items:
        group = _group_of(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


def _group_of(item: pytest.Item) -> str | None:
    if item.path.suffix == ".md":
        return str(item.path)
    if "integration" not in item.path.parts:
        return None
    name = f"{item.path.stem} {item.name}"
    return next((kind for kind in _LONGEST_FIRST if kind in name), None)
