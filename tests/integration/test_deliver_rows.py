"""The check that the crash tests trust finds what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsm import ExecutionKey, Registry
from hsm.components import callback as callbacks
from hsm.components.callback import Callback, Refused, Request, Scheduled
from hsm.engine import Engine
from persistence.store import DeleteRequest, SetRequest
from tests.crash._rows import problems
from tests.support.databases import Database


async def refuse(_: Request) -> callbacks.Outcome:
    return Refused("not in this process")


async def write_two(database: Database) -> None:
    registry = Registry()
    callbacks.register(registry, refuse)
    async with Engine(registry, database.store, run_tasks=False) as engine:
        for id_ in ("a", "b"):
            await engine.start(
                ExecutionKey("deliver", id_),
                Callback.new(Request("http://example.org"), request_id=id_),
                on_start=lambda node: node.apply(callbacks.scheduled, Scheduled()),
            )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("c/deliver/a", "is no current run"),
        ("e/deliver/a/", "names a run that is not there"),
        ("o/", "is in 0 queues"),
    ],
)
async def test_missing_row_is_found(tmp_path: Path, row: str, problem: str) -> None:
    url = f"sqlite:///{tmp_path}/deliveries.db"
    async with Database(url) as database:
        await write_two(database)
        assert await problems(url) == []
        partition, item = (await database.rows(row))[0]
        await database.store.delete(DeleteRequest(partition=partition, key=item.key))
        assert any(problem in told for told in await problems(url))


async def test_row_too_many_is_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deliveries.db"
    async with Database(url) as database:
        await write_two(database)
        partition, item = (await database.rows("o/"))[0]
        key = item.key[:-1] + ("0" if item.key[-1] != "0" else "1")
        await database.store.set(SetRequest(partition=partition, key=key, value=item.value))
        assert any("is in 2 queues" in told for told in await problems(url))


async def test_machine_that_is_further_than_its_task_is_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deliveries.db"
    async with Database(url) as database:
        await write_two(database)
        partition, item = (await database.rows("e/deliver/a/"))[0]
        # The attempt is field 5 of the machine's data.
        value = item.value.replace(b"\x20\x02\x28\x01", b"\x20\x02\x28\x02")
        assert value != item.value
        await database.store.set(SetRequest(partition=partition, key=item.key, value=value))
        assert any("is at attempt 2, its task at 1" in told for told in await problems(url))
