"""`hsm status`, `hsm show` and `hsm dead` on a database of somebody's own program."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from docs.examples.order import Order, place, registry
from hsm import ExecutionKey
from hsm.engine import Engine
from persistence import EngineStore, connect, require
from tests.support.deliveries import hsm

DATABASE = ("--db", "sqlite:///orders.db")
REGISTRY = ("--registry", "docs.examples.order:registry")
MODULE = """
import hsm
broken = 3
def made(): return hsm.Registry()
def fails(): raise ValueError("two\\nlines")
"""


@pytest.fixture(autouse=True)
async def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "mine.py").write_text(MODULE)
    async with (
        require(connect(f"sqlite:///{tmp_path / 'orders.db'}"), EngineStore) as store,
        Engine(registry, store, run_tasks=False) as engine,
    ):
        until = engine.now() + timedelta(minutes=15)
        key = ExecutionKey("shop", "lamp")
        await engine.start(key, Order("lamp", 50), on_start=lambda node: place(node, until))


async def test_machines_of_a_registry_are_shown(tmp_path: Path) -> None:
    show = ("show", *DATABASE, *REGISTRY, "--namespace", "shop")
    result = await hsm(*show, "lamp", folder=tmp_path)
    assert (result.status, result.err) == (0, "")
    assert "order RESERVED" in result.out
    assert "request payment ASKED" in result.out
    assert "task call to bank" in result.out


async def test_machines_that_nobody_knows_are_shown_as_far_as_possible(tmp_path: Path) -> None:
    result = await hsm("show", *DATABASE, "--namespace", "shop", "lamp", folder=tmp_path)
    assert (result.status, result.err) == (0, "")
    assert "1 RESERVED after 1 transitions" in result.out
    assert "2 payment - after 1 transitions" in result.out
    assert "task 2 to bank" in result.out


@pytest.mark.parametrize("registry", ["docs.examples.order:registry", "mine:made"])
@pytest.mark.parametrize("command", ["status", "dead"])
async def test_commands_take_a_registry_or_a_function_that_makes_one(
    tmp_path: Path, command: str, registry: str
) -> None:
    result = await hsm(command, *DATABASE, "--registry", registry, folder=tmp_path)
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mine", "module:name"),
        ("nowhere:registry", "No module named 'nowhere'"),
        ("mine:missing", "no attribute 'missing'"),
        ("mine:broken", "no Registry"),
        ("mine:fails", "ValueError: two lines"),
    ],
)
async def test_registry_that_cannot_be_had_is_named(tmp_path: Path, name: str, reason: str) -> None:
    result = await hsm("status", *DATABASE, "--registry", name, folder=tmp_path)
    assert (result.status, len(result.err.splitlines())) == (2, 1)
    assert repr(name) in result.err
    assert reason in result.err
