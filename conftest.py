"""The Python blocks of README.md and of the docs run as tests, in order, each page in a folder of its own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser


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
