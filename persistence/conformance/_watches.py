"""Watching: whoever watches learns of every change, at least once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from persistence.conformance.case import Cases, ConformanceError, World, expect_equal
from persistence.features import require
from persistence.store import Change, ChangeKind, Feature, PrefixDeleteStore, SetRequest, WatchableStore

__all__ = ["cases"]

cases: Final = Cases(Feature.WATCH)

_PATIENCE_SECONDS: Final = 10.0


def _watch(world: World, prefix: str = "") -> AsyncIterator[Change]:
    return require(world.store, WatchableStore).watch(world.partition, prefix)


async def _expect_told(changes: AsyncIterator[Change], *keys: str) -> None:
    """Read until all keys were told, or a RESYNC, which stands for any of them."""
    missing = set(keys)
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while missing:
                change = await anext(changes)
                if change.kind is ChangeKind.RESYNC:
                    return
                missing.discard(change.key)
    except TimeoutError:
        raise ConformanceError(f"the watch did not tell of {missing}") from None


async def _next(changes: AsyncIterator[Change]) -> Change:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await anext(changes)
    except TimeoutError:
        raise ConformanceError("the watch told of nothing") from None


@cases.case()
async def a_watch_tells_of_every_kind_of_change(world: World) -> None:
    """A new key, a new value, a deletion."""
    changes = _watch(world)
    await world.set("key", b"1")
    await _expect_told(changes, "key")
    await world.set("key", b"2")
    await _expect_told(changes, "key")
    await world.delete("key")
    await _expect_told(changes, "key")


@cases.case()
async def a_watch_tells_of_changes_before_it_is_read(world: World) -> None:
    """It begins when it is asked for, not when it is first read."""
    changes = _watch(world, "task/")
    for number in range(5):
        await world.set(f"task/{number}")
    await _expect_told(changes, *(f"task/{number}" for number in range(5)))


@cases.case()
async def a_watch_wakes_its_reader(world: World) -> None:
    """A reader that waits is told when something happens."""
    changes = _watch(world, "task/")
    reader = asyncio.create_task(_expect_told(changes, "task/1"))
    await asyncio.sleep(0)
    await world.set("node/1")
    await world.set("task/1")
    await reader


@cases.case(Feature.TRANSACTIONAL)
async def a_watch_tells_of_multis(world: World) -> None:
    """Of every key that one writes."""
    changes = _watch(world)
    await world.transactional.multi([world.set_request("a"), world.set_request("b")])
    await _expect_told(changes, "a", "b")


@cases.case(Feature.TRANSACTIONAL)
async def a_watch_tells_of_a_large_multi(world: World) -> None:
    """However many keys one writes, and however long they are."""
    count = min(1000, world.store.limits.operations)
    padding = "\u20ac" * 50
    keys = [f"{number:04}{padding}" for number in range(count)]
    changes = _watch(world, "0")
    await world.transactional.multi([world.set_request(key) for key in keys])
    await _expect_told(changes, *keys)
    await world.transactional.multi([world.delete_request(key) for key in keys])
    await _expect_told(changes, *keys)


@cases.case(Feature.DELETE_WITH_PREFIX)
async def a_watch_tells_of_a_family_that_is_deleted(world: World) -> None:
    """Of each member."""
    members = [f"family||{number}" for number in range(3)]
    for key in members:
        await world.set(key)
    changes = _watch(world, "family")
    await require(world.store, PrefixDeleteStore).delete_with_prefix(world.partition, "family")
    await _expect_told(changes, *members)


@cases.case()
async def a_watch_keeps_to_its_partition_and_prefix(world: World) -> None:
    """It tells of no key that lacks the prefix, and of none of a partition whose name begins alike."""
    for partition, prefix in ((world.partition, "a%"), (f"{world.partition}{{}}|'\U0001f600", "\U0001f600")):
        changes = require(world.store, WatchableStore).watch(partition, prefix)
        for place, key in (
            (partition, "ab1"),
            (partition, "b"),
            (f"{partition}/", f"{prefix}elsewhere"),
            (partition[:-1], f"{prefix}elsewhere"),
            (partition, f"{prefix}\n\u00e4"),
        ):
            await world.store.set(SetRequest(partition=place, key=key, value=b""))
        told = await _next(changes)
        while told.kind is ChangeKind.RESYNC:
            await world.store.set(SetRequest(partition=partition, key=f"{prefix}\n\u00e4", value=b""))
            told = await _next(changes)
        expect_equal(told.key, f"{prefix}\n\u00e4", "key")


@cases.case()
async def a_watch_is_told_what_another_store_writes(world: World) -> None:
    """The database tells, not the store that writes."""
    changes = _watch(world)
    async with world.open_store() as other:
        await other.set(world.set_request("key"))
        await _expect_told(changes, "key")


@cases.case()
async def two_watches_are_both_told(world: World) -> None:
    """Each for itself."""
    first, second = _watch(world), _watch(world, "k")
    await world.set("key")
    await _expect_told(first, "key")
    await _expect_told(second, "key")


@cases.case()
async def a_watch_ends_with_its_store(world: World) -> None:
    """Whoever waits for changes is let go when the store is closed."""
    async with world.open_store() as other:
        changes = require(other, WatchableStore).watch(world.partition, "")
        reader = asyncio.create_task(_read_to_the_end(changes))
        await asyncio.sleep(0)
    try:
        await asyncio.wait_for(reader, _PATIENCE_SECONDS)
    except TimeoutError:
        raise ConformanceError("the watch did not end") from None


async def _read_to_the_end(changes: AsyncIterator[Change]) -> None:
    async for _ in changes:
        pass
