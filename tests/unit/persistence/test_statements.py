from __future__ import annotations

import sys
from pathlib import Path

import pytest

from persistence.statements import named_statements, script

NAMED = """-- Anything before the first name is a comment.

-- :read-row
SELECT v
-- A comment of the statement.
FROM kv WHERE p = ?

-- :ping
SELECT 1
"""
SCRIPT = """CREATE TABLE kv (
    p text,  -- a comment; with a semicolon
    v bytea
);

CREATE INDEX kv_v ON kv (v);\t

INSERT INTO kv VALUES (';', 'x')
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"package_of_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    for line_end, prefix in (("\n", ""), ("\r\n", "windows-")):
        for file, text in (("named.sql", NAMED), ("script.sql", SCRIPT)):
            (tmp_path / name / (prefix + file)).write_text(text, newline=line_end)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.parametrize("prefix", ["", "windows-"])
def test_statements_have_names(package: str, prefix: str) -> None:
    assert named_statements(package, f"{prefix}named.sql") == {
        "read-row": "SELECT v\n-- A comment of the statement.\nFROM kv WHERE p = ?",
        "ping": "SELECT 1",
    }


@pytest.mark.parametrize("prefix", ["", "windows-"])
def test_a_script_has_statements(package: str, prefix: str) -> None:
    assert script(package, f"{prefix}script.sql") == (
        "CREATE TABLE kv (\n    p text,  -- a comment; with a semicolon\n    v bytea\n)",
        "CREATE INDEX kv_v ON kv (v)",
        "INSERT INTO kv VALUES (';', 'x')",
    )


def test_a_file_without_names_has_no_statements(package: str) -> None:
    assert named_statements(package, "script.sql") == {}
