"""Right client code passes mypy --strict and pyright strict; wrong client code fails at every marked line.

A mark is two comments above the line, one for each checker: `# mypy-error: pattern` and
`# pyright-error: pattern`. Each marked line has to give an error that the pattern is found in, and no other
line may give any.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in CASES.glob("*.py"))

MARK = re.compile(r"# (?P<checker>mypy|pyright)-error: (?P<pattern>.*)")

# File and line; one-based, as editors show it.
Place: TypeAlias = tuple[str, int]
Errors: TypeAlias = Mapping[Place, list[str]]


@functools.cache
def mypy_errors() -> Errors:
    output = run(
        "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), "--output", "json", *FILES
    )
    found = [json.loads(line) for line in output.splitlines()]
    return by_place([(error["file"], error["line"], error["message"]) for error in found if is_error(error)])


@functools.cache
def pyright_errors() -> Errors:
    output = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(CASES))
    found = json.loads(output)["generalDiagnostics"]
    return by_place(
        [
            (error["file"], error["range"]["start"]["line"] + 1, error["message"])
            for error in found
            if is_error(error)
        ]
    )


CHECKERS: dict[str, Callable[[], Errors]] = {"mypy": mypy_errors, "pyright": pyright_errors}


def is_error(found: Mapping[str, object]) -> bool:
    return found["severity"] == "error"


def run(*command: str) -> str:
    """Standard output of a checker that found errors, which it has to."""
    environment = os.environ | {"MYPYPATH": f"{CASES}:{ROOT}", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=CASES,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout


def by_place(found: list[tuple[str, int, str]]) -> Errors:
    errors: dict[Place, list[str]] = {}
    for file, line, message in found:
        errors.setdefault((Path(file).name, line), []).append(message)
    return errors


def marks(file: str, checker: str) -> dict[Place, str]:
    """The patterns that a file expects of a checker, by the line below the mark."""
    expected: dict[Place, str] = {}
    pattern = None
    for number, line in enumerate((CASES / file).read_text(encoding="utf-8").splitlines(), 1):
        found = MARK.fullmatch(line.strip())
        if found is None and pattern is not None:
            expected[file, number], pattern = pattern, None
        elif found is not None and found["checker"] == checker:
            pattern = found["pattern"]
    return expected


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("checker", CHECKERS)
def test_marked_lines_and_no_others_are_errors(checker: str, file: str) -> None:
    expected = marks(file, checker)
    found = {place: messages for place, messages in CHECKERS[checker]().items() if place[0] == file}

    missed = {place: pattern for place, pattern in expected.items() if place not in found}
    unexpected = {place: messages for place, messages in found.items() if place not in expected}
    different = {
        place: (pattern, found[place])
        for place, pattern in expected.items()
        if place in found and not any(re.search(pattern, message) for message in found[place])
    }

    assert (missed, unexpected, different) == ({}, {}, {})


@pytest.mark.parametrize("file", FILES)
def test_every_mark_is_for_both_checkers(file: str) -> None:
    assert marks(file, "mypy").keys() == marks(file, "pyright").keys()
    assert bool(marks(file, "mypy")) == (not file.startswith(("right", "shop", "bank")))
