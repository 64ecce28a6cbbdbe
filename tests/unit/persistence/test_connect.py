from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Protocol

import pytest

from persistence import (
    EngineStore,
    Feature,
    FeatureMissingError,
    GetRequest,
    InvalidRequestError,
    KeysLikeStore,
    SetRequest,
    Store,
    UnknownSchemeError,
    WatchableStore,
    connect,
    require,
)
from persistence.stores.memory import MemoryStore
from persistence.stores.sqlite import SqliteStore


async def value_in(store: Store) -> bytes | None:
    return (await store.get(GetRequest(key="key"))).data


async def test_memory_without_a_name_is_new_each_time() -> None:
    async with connect("memory://") as one, connect("memory://") as other:
        await one.set(SetRequest(key="key", value=b"value"))
        assert await value_in(other) is None


async def test_memory_with_a_name_is_shared_while_a_store_exists() -> None:
    async with connect("memory://shared%20name") as one:
        await one.set(SetRequest(key="key", value=b"value"))
        async with connect("memory://shared%20name") as same, connect("memory://other") as other:
            assert await value_in(same) == b"value"
            assert await value_in(other) is None
    async with connect("memory://shared%20name") as later:
        assert await value_in(later) is None


async def test_sqlite_with_three_slashes_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with connect("sqlite:///relative%20name.db"):
        assert (tmp_path / "relative name.db").exists()


async def test_sqlite_path_is_found_when_the_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = connect("sqlite:///state.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with store:
        assert (tmp_path / "state.db").exists()


async def test_sqlite_with_four_slashes_is_absolute(tmp_path: Path) -> None:
    async with connect(f"SQLite:///{tmp_path}/a#b.db?busy_timeout=0.5&cleanup_interval=10") as store:
        assert isinstance(store, SqliteStore)
        assert (tmp_path / "a#b.db").exists()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///?busy_timeout=1"]
)
def test_sqlite_without_a_file_hints_at_memory(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="memory://"):
        connect(url)


def test_sqlite_with_two_slashes_hints_at_three() -> None:
    with pytest.raises(InvalidRequestError, match=r"sqlite:///relative\.db"):
        connect("sqlite://state.db")


@pytest.mark.parametrize("query", ["busy=1", "busy_timeout=soon", "busy_timeout=-1", "busy_timeout=nan"])
def test_bad_option_is_refused_by_name(query: str) -> None:
    with pytest.raises(InvalidRequestError, match="busy"):
        connect(f"sqlite:///state.db?{query}")


def test_option_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="twice"):
        connect("sqlite:///state.db?busy_timeout=1&busy_timeout=2")


@pytest.mark.parametrize("url", ["memory://name/path", "memory:///path", "memory://name?option=1"])
def test_memory_takes_neither_path_nor_options(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        connect(url)


@pytest.mark.parametrize("scheme", ["oracle", "nonsense"])
def test_unknown_scheme_names_the_known_ones_and_no_password(scheme: str) -> None:
    with pytest.raises(UnknownSchemeError, match=rf"'{scheme}'.*memory.*, sqlite") as unknown:
        connect(f"{scheme}://user:secret@host/database")
    assert "secret" not in str(unknown.value)


@pytest.mark.parametrize("url", ["", "state.db", "//user:secret@host", "user:secret@host"])
def test_url_without_a_scheme_names_the_known_ones_and_no_password(url: str) -> None:
    with pytest.raises(UnknownSchemeError, match=r"memory.*, sqlite") as unknown:
        connect(url)
    assert "secret" not in str(unknown.value)


def fake_entry_points(monkeypatch: pytest.MonkeyPatch, **objects: str) -> None:
    points = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value, "persistence.stores") for name, value in objects.items()
    )

    def entry_points(*, group: str) -> importlib.metadata.EntryPoints:
        return points.select(group=group)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


class ThirdPartyStore(MemoryStore):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url


def test_third_party_adds_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_entry_points(monkeypatch, mine=f"{__name__}:ThirdPartyStore")
    store = connect("mine://host/path?x=1")
    assert isinstance(store, ThirdPartyStore)
    assert store.url == "mine://host/path?x=1"


def test_third_party_that_lacks_its_client_library_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_entry_points(monkeypatch, mine="no_such_client_library:Store")
    with pytest.raises(UnknownSchemeError, match=r"'mine' cannot be imported.*no_such_client_library"):
        connect("mine://host")
    with pytest.raises(UnknownSchemeError, match="memory, mine, mysql"):
        connect("other://host")


def test_third_party_whose_store_has_moved_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_entry_points(monkeypatch, mine=f"{__name__}:StoreOfAnEarlierRelease")
    with pytest.raises(UnknownSchemeError, match=r"'mine' cannot be imported.*StoreOfAnEarlierRelease"):
        connect("mine://host")


class EngineNeeds(EngineStore, WatchableStore, Protocol):
    """What an engine that is told of changes needs."""


class PoorStore(MemoryStore):
    @property
    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.ETAG, Feature.KEYS_LIKE})


def test_store_with_the_features_is_typed_as_what_was_asked_for() -> None:
    store = MemoryStore()
    engine_store: EngineStore = require(store, EngineStore)
    needs: EngineNeeds = require(store, EngineNeeds)
    assert engine_store is needs is store
    assert require(PoorStore(), KeysLikeStore).features
    assert require(PoorStore(), Store).features


def test_missing_features_are_named() -> None:
    with pytest.raises(FeatureMissingError, match="EngineNeeds: it lacks scan, transactional, watch"):
        require(PoorStore(), EngineNeeds)
