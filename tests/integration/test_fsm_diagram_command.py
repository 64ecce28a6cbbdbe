"""`hsm fsm diagram` as people call it: a picture on standard output, an answer in one line if there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from hsm.fsm import DatabaseStore, new_event, new_state_machine
from persistence.proto.statemachine_pb2 import FiniteStateMachine
from tests.support.deliveries import Result
from tests.support.fsm.commands import hsm_fsm
from tests.support.fsm.configurations import orders

Draw: TypeAlias = Callable[..., Awaitable[Result]]

MISSING = "graphviz is not installed: it has the program `dot`"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('diagrams') / 'machines.db'}"

    async def fill() -> None:
        async with DatabaseStore(url) as store:
            for version in ("v1", "v2"):
                await store.put_config(orders(version))
            await store.put_state_machine("1", new_state_machine(orders()))
            await store.tx_process_event("1", "orders", new_event("accept"))
            await store.put_state_machine("lost", FiniteStateMachine(config_id="orders:v1", state="lost"))

    asyncio.run(fill())
    return url


@pytest.fixture
def draw(url: str, tmp_path: Path) -> Draw:
    """The command, in this process."""
    return lambda *arguments: hsm_fsm("diagram", "--db", url, *arguments, folder=tmp_path)


def test_mermaid_is_the_usual_language(url: str) -> None:
    command = [sys.executable, "-m", "hsm.cli", "fsm", "diagram", "--db", url, "orders:v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stateDiagram-v2\n")
    assert "s0 --> s1 : accept\n" in done.stdout
    assert "current" not in done.stdout


async def test_machine_is_shown_where_it_is(draw: Draw) -> None:
    done = await draw("orders:v1", "--machine", "1", "--format", "dot")

    assert done.status == 0, done.err
    assert '[label="accepted", style="rounded,filled"' in done.out
    assert '[label="accept (1x)"]' in done.out


async def test_svg_is_drawn_by_graphviz(draw: Draw) -> None:
    if not shutil.which("dot"):
        if os.environ.get("HSM_REQUIRE_SERVERS"):
            pytest.fail(MISSING, pytrace=False)
        pytest.skip(MISSING)

    done = await draw("orders:v1", "--format", "svg")

    assert done.status == 0, done.err
    assert "</svg>" in done.out


async def test_missing_graphviz_is_named_in_one_line(
    draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    done = await draw("orders:v1", "--format", "svg")

    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "install the package graphviz" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["orders:v9"], 1, "orders:v9"),
        (["orders:v1", "--machine", "nobody"], 1, "nobody"),
        (["orders:v2", "--machine", "1"], 2, "machine '1' follows orders:v1, not orders:v2"),
        (["orders:v1", "--machine", "lost"], 2, "'lost' is not one of orders:v1"),
        (["orders:v1", "--format", "png"], 2, "png"),
    ],
)
async def test_what_cannot_be_drawn_is_said(
    draw: Draw, arguments: list[str], code: int, message: str
) -> None:
    done = await draw(*arguments)

    assert (done.status, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err
