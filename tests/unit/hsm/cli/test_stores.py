"""`hsm stores`, and how the commands find their database."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hsm.cli import _app
from hsm.cli._database import named_by_environment
from hsm.cli._errors import CommandError
from hsm.cli._stores import describe_store, list_stores
from persistence import Feature, StoreUnavailableError, connect
from persistence.backends import BACKENDS, Backend
from persistence.stores.memory import MemoryStore

SERVERS = [backend for backend in BACKENDS if backend.extra]


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def written(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def listed() -> dict[str, dict[str, Any]]:
    out = console()
    list_stores(out, as_json=True)
    return {store["name"]: store for store in json.loads(written(out))}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hsm", *arguments])
    return _app.run()


def test_every_store_is_listed_with_its_schemes_and_limits() -> None:
    stores = listed()
    for backend in BACKENDS:
        store = stores[backend.name]
        assert store["schemes"] == list(backend.schemes)
        assert store["example"] == backend.example
        assert set(store["features"]) == {feature.value for feature in backend.features}
        assert store["limits"]["value_bytes"] == backend.limits.value_bytes
        assert "client" in store or "install" in store


def test_sizes_are_for_people_in_the_list() -> None:
    out = console()
    list_stores(out, as_json=False)
    text = written(out)
    assert "  transaction  10,000 operations, 64 MiB\n" in text
    assert "  key          2 KiB with its partition\n" in text
    assert "  value        16 MiB\n" in text
    assert "  schemes      redis, rediss, valkey, valkeys, redis+cluster, rediss+cluster\n" in text


@pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.extra)
@pytest.mark.parametrize("installed", [True, False])
def test_extra_is_named_if_its_library_is_missing(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, installed: bool
) -> None:
    for module in backend.requires:
        if installed:
            pytest.importorskip(module)
        else:
            monkeypatch.setitem(sys.modules, module, None)
    store = listed()[backend.name]
    assert ("client" in store) == installed
    assert store.get("install", "") == ("" if installed else f"pip install 'hsm-toolkit[{backend.extra}]'")


@pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.extra)
def test_connecting_without_the_library_names_the_extra(backend: Backend) -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({backend.requires})); import hsm.cli; hsm.cli.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "status"],
        env=os.environ | {"HSM_DB": f"{backend.schemes[0]}://user:secret@host/database"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1), result.stderr
    assert f"pip install 'hsm-toolkit[{backend.extra}]'" in result.stderr
    assert "secret" not in result.stderr


async def test_open_store_says_what_it_can_do_and_lose(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    async with connect(url):
        pass
    out = console()
    assert await describe_store(out, url, as_json=False) == 0
    text = written(out)
    assert text.startswith("SQLite\n")
    assert f"server       SQLite {sqlite3.sqlite_version}" in text
    assert "durability   a commit is on the disk" in text


@pytest.mark.parametrize("content", [None, b""])
def test_asking_a_store_makes_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreUnavailableError, match="there is no database"):
        asyncio.run(describe_store(console(), f"sqlite:///{path}", as_json=False))
    found = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert found == ({} if content is None else {"state.db": content})


class Foreign(MemoryStore):
    """A store of a third party, which knows neither our options nor anything to tell."""

    durability = property()  # as if it were not there

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.ETAG})

    async def init(self, metadata: Any) -> None:
        assert not metadata.properties, metadata
        await super().init(metadata)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("theirs", f"{__name__}:Foreign", "persistence.stores")
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda _: Foreign)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints([point])
    )


@pytest.mark.usefixtures("foreign")
async def test_stores_of_others_are_listed_and_asked_without_our_options() -> None:
    out = console()
    list_stores(out, as_json=False)
    assert "theirs\n  schemes      theirs\n" in written(out)
    assert "known when it is open" in written(out)
    out = console()
    await describe_store(out, "theirs://user:secret@host", as_json=False)
    assert written(out).startswith("theirs\n")
    assert "features     etag\n" in written(out)
    assert "durability" not in written(out)
    assert "secret" not in written(out)


@pytest.mark.parametrize(
    "command", [("status",), ("show", "a"), ("dead",), ("demo", "--count", "3"), ("demo", "--db")]
)
def test_memory_is_refused_where_it_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HSM_DB", "memory://")
    rest = () if command[0] != "demo" or "--db" in command else ("--db", "memory://")
    assert run(monkeypatch, *command, *rest) == 2
    assert capsys.readouterr().err.startswith("hsm: memory:// is a new, empty database in each process")


def test_database_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HSM_DB", f"sqlite:///{tmp_path}/of-environment.db")
    assert run(monkeypatch, "status") == 2
    assert "of-environment.db" in capsys.readouterr().err
    assert run(monkeypatch, "status", "--db", f"sqlite:///{tmp_path}/of-argument.db") == 2
    assert "of-argument.db" in capsys.readouterr().err
    assert run(monkeypatch, "stores", "--db") == 2
    assert "of-environment.db" in capsys.readouterr().err
    assert run(monkeypatch, "stores") == 0
    monkeypatch.delenv("HSM_DB")
    assert run(monkeypatch, "stores", "--db") == 2
    assert "HSM_DB" in capsys.readouterr().err
    assert run(monkeypatch, "status") == 2
    assert "--db" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_variable_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSM_DB", "")
    with pytest.raises(CommandError, match="HSM_DB"):
        named_by_environment()
