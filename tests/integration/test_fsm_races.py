"""Processes race for configured machines and are killed; `tests/crash/fsm_races.py` does it for longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import NewServer
from tests.crash.fsm_races import Scale, place_on_redis, run_race
from tests.support.fsm.redis_world import raw_redis
from tests.support.servers import Server

SMALL = Scale(processes=2, events=80, machines=8, callers=8, kills=1)


async def expect_good_race(where: str) -> None:
    outcome = await run_race(where, SMALL)

    assert outcome.problems == []
    assert outcome.accepted
    assert outcome.refused


async def test_every_event_has_one_outcome_and_every_machine_one_state(tmp_path: Path) -> None:
    await expect_good_race(f"database sqlite:///{tmp_path / 'machines.db'}")


@pytest.mark.server
@pytest.mark.parametrize("kind", ["valkey", "valkey-cluster"])
async def test_every_event_has_one_outcome_and_every_machine_one_state_on_redis(
    kind: str, server_of: Callable[[str], Server], new_server: NewServer
) -> None:
    raw = raw_redis(kind, server_of, new_server)
    raw.clear()

    await expect_good_race(place_on_redis(raw))
