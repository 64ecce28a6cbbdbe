from __future__ import annotations

import pytest

from persistence import GetRequest, SetRequest, StoreClosedError
from persistence.stores.memory import MemoryStore
from tests.support.stores import SetClock


async def test_expired_rows_are_dropped_and_rewritten_ones_stay() -> None:
    clock = SetClock()
    async with MemoryStore(clock=clock) as store:
        for number in range(100):
            await store.set(SetRequest(key=str(number), value=b"", metadata={"ttlInSeconds": "5"}))
        for number in range(50):
            await store.set(SetRequest(key=str(number), value=b"", metadata={"ttlInSeconds": "60"}))
        clock.advance(10)
        keys = [item.key async for item in store.scan("", "", "")]
        assert keys == sorted(str(number) for number in range(50))


async def test_a_store_closed_in_the_middle_of_a_scan_says_so() -> None:
    store = MemoryStore()
    async with store:
        for number in range(1200):
            await store.set(SetRequest(key=f"{number:04}", value=b""))
        rows = store.scan("", "", "")
        await anext(rows)
    with pytest.raises(StoreClosedError):
        async for _ in rows:
            pass


async def test_a_closed_store_is_not_opened_again() -> None:
    store = MemoryStore()
    async with store:
        await store.get(GetRequest(key="key"))
    with pytest.raises(StoreClosedError, match="make a new one"):
        await store.__aenter__()
