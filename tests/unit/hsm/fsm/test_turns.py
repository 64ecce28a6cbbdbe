"""Turns: one at a time, in order of asking, and none is lost with who gave up."""

from __future__ import annotations

import asyncio

import pytest

from hsm.fsm._turns import Turns


async def test_turns_are_taken_in_order_one_at_a_time() -> None:
    turns = Turns()
    order: list[int] = []
    inside = 0

    async def take(number: int) -> None:
        nonlocal inside
        async with turns.turn("p", "1"):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            order.append(number)
            inside -= 1

    await asyncio.gather(*map(take, range(10)))

    assert order == list(range(10))


async def test_machines_do_not_wait_for_each_other() -> None:
    turns = Turns()
    async with turns.turn("p", "1"), turns.turn("p", "2"), turns.turn("q", "1"):
        pass


@pytest.mark.parametrize("moment", ["before", "with"])
async def test_turn_of_one_who_gave_up_goes_to_the_next(moment: str) -> None:
    """Be it before the turn has come, or in the same moment."""
    turns = Turns()
    first = turns.turn("p", "1")
    await first.__aenter__()

    async def take() -> None:
        async with turns.turn("p", "1"):
            pass

    second, third = asyncio.create_task(take()), asyncio.create_task(take())
    await asyncio.sleep(0)
    if moment == "before":
        second.cancel()
        await first.__aexit__(None, None, None)
    else:
        await first.__aexit__(None, None, None)
        second.cancel()

    with pytest.raises(asyncio.CancelledError):
        await second
    await third
    assert turns.take(("p", "1"))  # nobody has it any more
