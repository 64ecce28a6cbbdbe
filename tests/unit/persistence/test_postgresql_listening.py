"""The listener of PostgreSQL: it ends, whatever becomes of a cancellation on its way."""

from __future__ import annotations

import asyncio

import pytest

from persistence.stores.postgresql.listening import end_task


@pytest.mark.parametrize("swallowed", [0, 1, 2])
async def test_task_ends_though_its_cancellation_is_swallowed(swallowed: int) -> None:
    left = swallowed

    async def listen() -> None:
        nonlocal left
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                if not left:
                    raise
                left -= 1

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    await end_task(task)
    assert task.cancelled()


async def test_what_a_task_has_failed_of_is_not_lost() -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="broken"):
        await end_task(task)
