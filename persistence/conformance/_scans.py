"""Scans: ranges in code-point order, both ways."""

from __future__ import annotations

import asyncio
import itertools
from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect_equal
from persistence.errors import InvalidRequestError, StoreClosedError
from persistence.options import prefix_end
from persistence.store import Feature, SetRequest

__all__ = ["cases"]

cases: Final = Cases(Feature.SCAN)

# In code-point order. UTF-16 units would put the last three before U+E000 and U+FFFF, and collations of
# languages would mix upper and lower case and accents.
_ORDERED_KEYS: Final = (
    "\t",
    " ",
    "!",
    "-",
    "0",
    "10",
    "9",
    "A",
    "B",
    "Z",
    "_",
    "a",
    "a b",
    "a/",
    "a/b",
    "aa",
    "ab",
    "b",
    "z",
    "{",
    "~",
    "\u00c4",
    "\u00df",
    "\u00e4",
    "\u4e2d",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "\U00010000",
    "\U0001f600",
    "\U0010ffff",
)
_CHARACTERS: Final = (
    "\x01",
    "%",
    "A",
    "_",
    "a",
    "\x7f",
    "\u00df",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
)
_MANY: Final = 1025


async def _fill(world: World, count: int) -> list[str]:
    keys = [f"key/{number:05}" for number in range(count)]
    await world.store.bulk_set([world.set_request(key, key.encode()) for key in keys], parallelism=100)
    return keys


@cases.case()
async def keys_come_in_code_point_order(world: World) -> None:
    """Whatever order they were written in."""
    for key in sorted(_ORDERED_KEYS, key=hash):
        await world.set(key)
    expect_equal(await world.keys(), list(_ORDERED_KEYS), "keys")
    expect_equal(await world.keys(reverse=True), list(_ORDERED_KEYS[::-1]), "keys backwards")


@cases.case()
async def a_range_is_half_open(world: World) -> None:
    """The start belongs to it, the end does not, in both directions and with bounds that are no keys."""
    for key in "abcdef":
        await world.set(key)
    ranges = {
        ("b", "e"): "bcd",
        ("", "c"): "ab",
        ("d", ""): "def",
        ("", ""): "abcdef",
        ("bb", "dd"): "cd",
        ("a", "a"): "",
        ("e", "b"): "",
        ("g", ""): "",
        ("", "a"): "",
        ("0", "z"): "abcdef",
    }
    for (start, end), expected in ranges.items():
        expect_equal(await world.keys(start, end), list(expected), f"keys of [{start!r}, {end!r})")
        backwards = await world.keys(start, end, reverse=True)
        expect_equal(backwards, list(expected[::-1]), f"keys of [{start!r}, {end!r}) backwards")


@cases.case()
async def bounds_of_every_kind_of_text_fit(world: World) -> None:
    """Every key of the ordered list is a right start and a right end."""
    for key in _ORDERED_KEYS:
        await world.set(key)
    for position, key in enumerate(_ORDERED_KEYS):
        expect_equal(await world.keys(key), list(_ORDERED_KEYS[position:]), f"keys from {key!r}")
        expect_equal(await world.keys("", key), list(_ORDERED_KEYS[:position]), f"keys to {key!r}")


@cases.case()
async def a_limit_bounds_the_rows(world: World) -> None:
    """From the beginning, or backwards from the end."""
    for key in "abcdef":
        await world.set(key)
    expect_equal(await world.keys(limit=2), ["a", "b"], "keys")
    expect_equal(await world.keys("b", "e", limit=2), ["b", "c"], "keys")
    expect_equal(await world.keys("b", "e", limit=2, reverse=True), ["d", "c"], "keys backwards")
    expect_equal(await world.keys(limit=100), list("abcdef"), "keys")
    expect_equal(await world.keys(limit=0), [], "keys")
    with Refused(InvalidRequestError):
        await world.keys(limit=-1)


@cases.case()
async def rows_carry_value_and_etag(world: World) -> None:
    """The same as a read of the key."""
    for key in ("a", "b"):
        await world.set(key, key.encode())
    for item in await world.scan():
        response = await world.get(item.key)
        expect_equal((item.value, item.etag), (response.data, response.etag), f"row {item.key!r}")


@cases.case()
async def a_scan_stays_in_its_partition(world: World) -> None:
    """Also where names of partitions begin alike."""
    for partition in (world.partition, world.partition + "a", world.partition + "/", world.partition[:-1]):
        await world.store.set(SetRequest(partition=partition, key=partition, value=b""))
    expect_equal(await world.keys(), [world.partition], "keys")
    expect_equal(await world.keys(reverse=True), [world.partition], "keys backwards")


@cases.case()
async def a_prefix_is_a_range(world: World) -> None:
    """From the prefix to `prefix_end(prefix)`."""
    for key in ("a", "a/", "a/b", "a/\U0010ffff", "a0", "b"):
        await world.set(key)
    expect_equal(await world.keys("a/", prefix_end("a/")), ["a/", "a/b", "a/\U0010ffff"], "keys")


@cases.case()
async def a_long_scan_goes_over_many_pages(world: World) -> None:
    """Every row once, in order, in both directions, with and without a limit."""
    keys = await _fill(world, _MANY)
    expect_equal(await world.keys(), keys, "keys")
    expect_equal(await world.keys(reverse=True), keys[::-1], "keys backwards")
    for limit in (199, 200, 201, 500, 1000, _MANY, _MANY + 1):
        expect_equal(await world.keys(limit=limit), keys[:limit], f"{limit} keys")
        expect_equal(
            await world.keys(limit=limit, reverse=True), keys[::-1][:limit], f"{limit} keys backwards"
        )
    expect_equal(await world.keys(keys[3], keys[-3]), keys[3:-3], "keys of a range")


@cases.case()
async def large_values_are_scanned(world: World) -> None:
    """Pages do not depend on the size of values."""
    value = (bytes(range(256)) * 1024)[: world.store.limits.value_bytes]
    keys = [f"key/{number:02}" for number in range(20)]
    for key in keys:
        await world.set(key, value)
    rows = await world.scan()
    expect_equal([row.key for row in rows], keys, "keys")
    expect_equal(all(row.value == value for row in rows), True, "values are what was written")


@cases.case()
async def rows_may_change_under_a_scan(world: World) -> None:
    """What was there all the time comes exactly once, and the scan ends."""
    keys = await _fill(world, _MANY)
    seen: list[str] = []
    async for item in world.ordered.scan(world.partition, "", ""):
        if not seen:
            await world.delete(keys[-1])
            await world.delete(keys[5])
            await world.set("key/00700+", b"")
        seen.append(item.key)
    steady = [key for key in keys if key not in {keys[5], keys[-1]}]
    expect_equal([key for key in seen if key in set(steady)], steady, "keys")


@cases.case()
async def a_scan_can_be_left(world: World) -> None:
    """A reader that stops early leaves nothing behind that hinders others."""
    await _fill(world, 300)
    for _ in range(20):
        async for _item in world.ordered.scan(world.partition, "", ""):
            break
    await world.set("after", b"value")
    expect_equal(await world.value("after"), b"value", "value")


@cases.case()
async def bad_bounds_are_refused(world: World) -> None:
    """NUL and lone surrogates are in no key."""
    for bad in ("a\0b", "\ud800"):
        with Refused(InvalidRequestError):
            await world.keys(bad)
        with Refused(InvalidRequestError):
            await world.keys("", bad)


@cases.case()
async def a_closed_store_does_not_scan(world: World) -> None:
    """It says so."""
    store = world.open_store()
    closed = World(store, world.open_store, world.wait)
    with Refused(StoreClosedError):
        await closed.keys()


@cases.case()
async def many_keys_of_many_scripts_come_in_code_point_order(world: World) -> None:
    """Over many pages, both ways, and from any key on: characters of one to four bytes next to each other."""
    keys = ["".join(characters) for characters in itertools.product(_CHARACTERS, repeat=3)]
    shuffled = sorted(keys, key=hash)
    await world.store.bulk_set([world.set_request(key, key.encode()) for key in shuffled], parallelism=200)
    keys.sort()
    rows = await world.scan()
    expect_equal([row.key for row in rows], keys, "keys")
    expect_equal([row.value for row in rows], [key.encode() for key in keys], "values")
    expect_equal(await world.keys(reverse=True), keys[::-1], "keys backwards")
    for position in (1, 99, 100, 1099, 1100, len(keys) - 1):
        key = keys[position]
        expect_equal(await world.keys(key, limit=150), keys[position : position + 150], f"keys from {key!r}")
        backwards = await world.keys("", key, limit=150, reverse=True)
        expect_equal(backwards, keys[:position][::-1][:150], f"keys to {key!r} backwards")


@cases.case()
async def a_scan_goes_on_after_the_deletion_of_what_it_has_read(world: World) -> None:
    """Also of the row that a page has ended with, both ways: who sweeps rows deletes as it reads."""
    for reverse in (False, True):
        keys = await _fill(world, _MANY)
        ordered = keys[::-1] if reverse else keys
        seen: list[str] = []
        async for item in world.ordered.scan(world.partition, "", "", reverse=reverse):
            seen.append(item.key)
            if len(seen) % 50 == 0:
                await world.store.bulk_delete([world.delete_request(key) for key in seen[-50:]])
        expect_equal(seen, ordered, "keys")
        expect_equal(await world.keys(), keys[-25:] if not reverse else keys[:25], "keys that are left")


@cases.case()
async def rows_may_change_under_a_scan_backwards(world: World) -> None:
    """As forwards: what was there all the time comes exactly once."""
    keys = await _fill(world, _MANY)
    going = {keys[position + 1]: keys[position] for position in range(24, _MANY - 1, 100)}
    seen: list[str] = []
    async for item in world.ordered.scan(world.partition, "", "", reverse=True):
        seen.append(item.key)
        if item.key in going:
            await world.delete(going[item.key])
            await world.set(going[item.key] + "+", b"")
    steady = {*keys} - {*going.values()}
    expect_equal([key for key in seen if key in steady], [key for key in keys[::-1] if key in steady], "keys")
    expect_equal(len(set(seen)), len(seen), "different keys")


@cases.case()
async def scans_run_side_by_side(world: World) -> None:
    """Many at once, among writes, each in order."""
    keys = await _fill(world, 300)
    rewrites = (world.set(key, b"new") for key in keys)
    scans = (world.keys(reverse=number % 2 == 1) for number in range(20))
    *found, _ = await asyncio.gather(*scans, asyncio.gather(*rewrites))
    expect_equal(found, [keys, keys[::-1]] * 10, "keys")
