"""What an import costs: the base install has to do, and nothing heavy is loaded before it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "_sqlite3",
    "aiohttp",
    "asyncpg",
    "cattrs",
    "click",
    "etcd3",
    "grpc",
    "opentelemetry",
    "psycopg",
    "pymysql",
    "redis",
    "rich",
    "sqlite3",
    "starlette",
    "yaml",
}

LIST_LOADED_MODULES = """
import {module}, json, sys
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def loaded_by(module: str) -> set[str]:
    program = LIST_LOADED_MODULES.format(module=module)
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("module", ["hsm", "persistence", "hsm, persistence", "hsm.engine", "hsm.fsm"])
def test_import_loads_no_driver_and_no_framework(module: str) -> None:
    assert loaded_by(module) & HEAVY == set()


def test_persistence_loads_nothing_of_hsm() -> None:
    assert "hsm" not in loaded_by("persistence")
