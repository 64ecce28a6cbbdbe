"""The cleaner of expired rows: it goes on whatever happens, and leaves the loop to others."""

from __future__ import annotations

import asyncio

import pytest

from persistence import StoreUnavailableError
from persistence.cleaning import Cleaner


async def test_an_interval_of_nothing_leaves_the_loop_to_others() -> None:
    cleaned = 0

    async def clean() -> None:
        nonlocal cleaned
        cleaned += 1

    cleaner = Cleaner(clean, 0.0)
    for _ in range(1000):
        await asyncio.sleep(0)
    await cleaner.aclose()
    assert cleaned <= 1


@pytest.mark.parametrize("error", [StoreUnavailableError("nobody answers"), ZeroDivisionError("a mistake")])
async def test_a_failure_is_logged_and_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0
    again = asyncio.Event()

    async def clean() -> None:
        nonlocal tries
        tries += 1
        if tries > 1:
            again.set()
        raise error

    cleaner = Cleaner(clean, 0.0)
    await again.wait()
    await cleaner.aclose()
    assert "expired rows could not be deleted" in caplog.text
