"""The page on databases lists every option there is."""

from __future__ import annotations

import importlib
import re
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

PAGE = Path(__file__).parents[3] / "docs/how-to/choose-store.md"
OPTIONS = {
    "SQLite": ("sqlite", "SqliteOptions", "sqlite3"),
    "PostgreSQL": ("postgresql", "PostgresOptions", "psycopg"),
    "MariaDB and MySQL": ("mariadb", "MariaDBOptions", "asyncmy"),
    "Redis and Valkey": ("redis", "RedisOptions", "redis"),
    "etcd": ("etcd", "EtcdOptions", "grpc"),
}


def documented(heading: str) -> dict[str, str]:
    """Options of a section and their defaults; one of several in a cell has none of its own."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| ", section, re.MULTILINE)
    return {
        name: default if "," not in names else ""
        for names, default in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def text_of(default: object) -> str:
    if isinstance(default, timedelta):
        return f"{default.total_seconds():g}"
    return str(default).lower() if isinstance(default, bool) else str(default)


@pytest.mark.parametrize("heading", OPTIONS)
def test_every_option_is_documented_with_its_default(heading: str) -> None:
    package, name, library = OPTIONS[heading]
    pytest.importorskip(library)
    options = getattr(importlib.import_module(f"persistence.stores.{package}"), name)
    told = documented(heading)
    defaults = {field.name: text_of(field.default) for field in attrs.fields(options)}
    assert told.keys() == defaults.keys()
    # What the page says in words has no default that could be written down.
    assert {name: told[name] for name in told if defaults[name]} == {
        name: default for name, default in defaults.items() if default
    }
