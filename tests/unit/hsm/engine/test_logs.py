"""Log records have fields that say which execution, task and shard they are about."""

from __future__ import annotations

import logging

import pytest

from hsm import Node, TerminalError
from hsm.testing import TestEngine
from tests.support.databases import Database
from tests.support.jobs import Lasting, Soon, Step, World, failing, small, started, step

FIELDS = [
    "hsm_namespace",
    "hsm_execution_id",
    "hsm_run_id",
    "hsm_task_id",
    "hsm_task_type",
    "hsm_attempt",
    "hsm_shard",
]


def fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: record.__dict__[name] for name in FIELDS}


async def test_record_about_a_task_says_which(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hsm.engine")
    world.on(Lasting, failing(OSError("no"), TerminalError("never")))
    async with TestEngine(world.registry, database.store, small()) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.run_until_idle()
        (dead,) = [dead async for dead in engine.dead_letters()]

    failed, buried = [record for record in caplog.records if record.name == "hsm.engine"]
    about = {
        "hsm_namespace": "tests",
        "hsm_execution_id": "job",
        "hsm_run_id": ref.execution.run_id,
        "hsm_task_id": dead.task_id,
        "hsm_task_type": "lasting",
        "hsm_shard": int(dead.partition.removeprefix("exec/")),
    }
    assert fields(failed) == about | {"hsm_attempt": 1}
    assert fields(buried) == about | {"hsm_attempt": 2}


async def test_record_about_a_row_that_cannot_be_read_says_what_is_known(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        await started(engine, "job", Soon("soon"))
    key = await database.overwrite("i/", b"\xff")
    caplog.set_level(logging.INFO, "hsm.engine")
    async with TestEngine(world.registry, database.store, small()) as engine:
        await engine.drain()

    (record,) = [record for record in caplog.records if record.name == "hsm.engine"]
    found = fields(record)
    assert found["hsm_task_id"] == key.rpartition("/")[2]
    assert found["hsm_shard"] in {0, 1}
    assert found["hsm_execution_id"] is None


async def test_records_about_no_task_have_the_fields_too(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with TestEngine(world.registry, database.store, small(delete_rows=1), run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, _grow)
        await engine.update(ref, lambda node: node.delete_child(step("top")))
    await database.overwrite("z/", b"\xff")
    caplog.set_level(logging.INFO, "hsm.engine")
    async with TestEngine(world.registry, database.store, small()) as engine:
        await engine.drain()

    (record,) = [record for record in caplog.records if record.name == "hsm.engine"]
    assert fields(record)["hsm_task_id"] is None
    assert fields(record)["hsm_shard"] in {0, 1}


def _grow(node: Node) -> None:
    top = node.add_child(step("top"), Step())
    for number in range(3):
        top.add_child(step(f"{number}"), Step())
