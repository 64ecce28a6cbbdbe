"""Durable goal-state engines on real databases: several of them share the work, and a restart forgets nothing."""

from __future__ import annotations

import asyncio
import enum
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

import persistence
from hsm.goalstate import Action, ActionList, DurableEngine, DurableOptions, EntityKind, Run, Standing
from persistence.store import EngineStore
from tests.support.servers import KINDS, Server

SCRIPT = Path(__file__).parents[1] / "crash" / "goal_kills.py"
OPTIONS = DurableOptions(
    poll_interval=timedelta(milliseconds=50),
    lease_seconds=2,
    failure_retry_delay=timedelta(milliseconds=20),
    claim_margin=timedelta(seconds=5),
)


class Goal(enum.Enum):
    DONE = 1


@attrs.define
class Work:
    """Counts who has done what, and fails the first time."""

    runs: Counter[str] = attrs.field(factory=Counter)
    running: set[str] = attrs.field(factory=set)
    left: int = 0
    done: asyncio.Event = attrs.field(factory=asyncio.Event)

    def kind(self) -> EntityKind[Goal]:
        return EntityKind("piece", lambda id_: Piece(id_, self), Goal)


@attrs.define
class Piece:
    id: str
    work: Work

    def read(self) -> Standing[int, Goal]:
        return Standing(self.work.runs[self.id], Goal.DONE)

    def action_list(self, state: int, goal: Goal, /) -> ActionList[Piece]:
        return ActionList([Action("do", do)])


async def do(piece: Piece, run: Run) -> None:
    work = piece.work
    assert piece.id not in work.running
    work.running.add(piece.id)
    await asyncio.sleep(0.005)
    work.running.discard(piece.id)
    work.runs[piece.id] += 1
    if work.runs[piece.id] == 1:
        raise OSError("the first time")
    work.left -= 1
    if not work.left:
        work.done.set()


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
async def test_engines_share_entities_and_a_restart_forgets_none(
    kind: str, server_of: Callable[[str], Server]
) -> None:
    url = server_of(kind).fresh_url()
    work = Work(left=40)
    pieces = work.kind()
    async with persistence.connect(url) as one, persistence.connect(url) as two:
        stores = [persistence.require(store, EngineStore) for store in (one, two)]
        async with DurableEngine(stores[0], [pieces], OPTIONS) as writer:
            for number in range(20):
                await writer.enqueue(
                    pieces, f"late {number}", writer.now() + timedelta(seconds=1), goal=Goal.DONE
                )
        async with (
            DurableEngine(stores[0], [pieces], OPTIONS) as first,
            DurableEngine(stores[1], [pieces], OPTIONS),
        ):
            for number in range(20):
                await first.enqueue(pieces, f"new {number}", goal=Goal.DONE)
            async with asyncio.timeout(60):
                await work.done.wait()
        assert set(work.runs.values()) == {2}
        async with DurableEngine(stores[1], [pieces], OPTIONS, run_entities=False) as looker:
            found = [info async for info in looker.list()]
        assert len(found) == 40
        assert {(info.deadline, info.running, info.failures, info.goal) for info in found} == {
            (None, False, 0, "DONE")
        }


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def test_killed_processes_forget_no_entity_and_run_none_twice_at_once(
    kind: str, request: pytest.FixtureRequest
) -> None:
    if kind != "sqlite":
        request.getfixturevalue("server_of")(kind)  # skips the test where there is none
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "3", "--url-kind", kind],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "forgotten 0, run twice at once 0" in result.stdout
