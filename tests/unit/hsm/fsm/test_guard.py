"""Guards: a block ends in time, and only its own time-out looks like one."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from hsm.fsm import GenericStoreError, InvalidDataError, StoreTimeoutError
from hsm.fsm._guard import Guard
from persistence.errors import InvalidRequestError, StoreUnavailableError

MOMENT = timedelta(milliseconds=5)
LONG = timedelta(hours=1)


async def for_ever(guard: Guard, what: str) -> None:
    with guard.block(what):
        await asyncio.Event().wait()


async def test_each_block_is_given_up_in_its_time() -> None:
    guard = Guard(MOMENT)

    async def worker(number: int) -> str:
        await asyncio.sleep(0.001 * (number % 3))
        with pytest.raises(StoreTimeoutError) as caught:
            await for_ever(guard, f"block {number}")
        return str(caught.value)

    told = await asyncio.gather(*map(worker, range(20)))

    assert told == [f"block {number}: no answer in time" for number in range(20)]
    with pytest.raises(StoreTimeoutError):  # and it watches on after it had nothing to watch
        await for_ever(guard, "another one")


async def test_block_that_ends_in_time_is_left_alone() -> None:
    guard = Guard(MOMENT)
    with guard.block("short"):
        await asyncio.sleep(0)
    await asyncio.sleep(4 * MOMENT.total_seconds())

    with pytest.raises(StoreTimeoutError, match="long"):
        await for_ever(guard, "long")


async def test_time_out_of_zero_never_comes() -> None:
    waiting = asyncio.create_task(for_ever(Guard(timedelta()), "patient"))
    await asyncio.sleep(4 * MOMENT.total_seconds())

    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancellation_stays_one() -> None:
    waiting = asyncio.create_task(for_ever(Guard(LONG), "block"))
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancellation_that_comes_with_the_time_out_is_not_lost() -> None:
    guard = Guard(MOMENT)

    async def both() -> None:
        with guard.block("block"):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(both())


async def test_time_out_inside_a_time_out_of_the_caller() -> None:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(MOMENT.total_seconds()):
            await for_ever(Guard(LONG), "block")
    assert not isinstance(caught.value, StoreTimeoutError)

    async with asyncio.timeout(LONG.total_seconds()):
        with pytest.raises(StoreTimeoutError):
            await for_ever(Guard(MOMENT), "block")


async def test_errors_of_the_contract_become_those_of_the_store() -> None:
    guard = Guard(LONG)
    with pytest.raises(GenericStoreError, match="block: store error: down"), guard.block("block"):
        raise StoreUnavailableError("down")
    with pytest.raises(InvalidDataError, match="block: too much"), guard.block("block"):
        raise InvalidRequestError("too much")
    with pytest.raises(ValueError, match="mine"), guard.block("block"):
        raise ValueError("mine")
