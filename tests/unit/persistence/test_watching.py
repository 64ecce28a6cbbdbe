from __future__ import annotations

import asyncio
import gc

from persistence import ChangeKind, SetRequest
from persistence.stores.memory import MemoryStore
from persistence.watching import Watch


async def told(watch: Watch, count: int) -> list[str]:
    return [(await anext(watch)).key for _ in range(count)]


async def test_changes_of_one_key_that_nobody_reads_are_told_once() -> None:
    watch = Watch("a")
    for key in ("a1", "b", "a2", "a1"):
        watch.notify(key)
    assert await told(watch, 2) == ["a1", "a2"]
    waiting = asyncio.create_task(told(watch, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    watch.notify("a3")
    assert await waiting == ["a3"]


async def test_a_reader_that_falls_far_behind_is_told_to_look_for_itself() -> None:
    watch = Watch("")
    for number in range(20_000):
        watch.notify(str(number))
    change = await anext(watch)
    assert (change.kind, change.key) == (ChangeKind.RESYNC, "")


async def test_a_cancelled_reader_loses_nothing() -> None:
    watch = Watch("")
    reader = asyncio.create_task(told(watch, 1))
    await asyncio.sleep(0)
    watch.notify("key")
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert await told(watch, 1) == ["key"]


async def test_a_watch_that_nobody_holds_is_forgotten() -> None:
    async with MemoryStore("watched") as store:
        watch = store.watch("p", "")
        del watch
        gc.collect()
        await store.set(SetRequest(partition="p", key="key", value=b""))
