"""Listing keys by pattern, and deleting families of keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import InvalidRequestError, KeysLikeEmptyPatternError
from persistence.features import require
from persistence.store import (
    Feature,
    GetRequest,
    KeysLikeRequest,
    KeysLikeResponse,
    KeysLikeStore,
    PrefixDeleteStore,
)

__all__ = ["cases"]

cases: Final = Cases()

_KEYS: Final = (
    "key1",
    "key2",
    "prefix||key1",
    "prefix||key2",
    "prefix||prefix2||key3",
    "other||key1",
    "abc1",
    "abc2",
    "abcd",
    "abcde",
    "ABCD",
    "\u00e4bc",
)
_PATTERNS: Final = {
    "%": _KEYS,
    "prefix||%": ("prefix||key1", "prefix||key2", "prefix||prefix2||key3"),
    "%key1": ("key1", "prefix||key1", "other||key1"),
    "%||%": ("prefix||key1", "prefix||key2", "prefix||prefix2||key3", "other||key1"),
    "%||%||%": ("prefix||prefix2||key3",),
    "abc_": ("abc1", "abc2", "abcd"),
    "abc%": ("abc1", "abc2", "abcd", "abcde"),
    "abcd": ("abcd",),
    "_bc": ("\u00e4bc",),
    "nothing%": (),
    "%%": _KEYS,
}
_SPECIAL_KEYS: Final = (
    "hello_workflow",
    "hello%%",
    "hello%other%",
    "hello.workflow",
    "hello*",
    "hello?",
    "hello[a]",
    "hello\\",
    "%hello_workflow%x_yoyo",
)
_SPECIAL_PATTERNS: Final = {
    r"hello\_workflow": ("hello_workflow",),
    "hello_workflow": ("hello_workflow", "hello.workflow"),
    r"hello\%\%": ("hello%%",),
    r"hello%\%": ("hello%%", "hello%other%"),
    r"hello\%%": ("hello%%", "hello%other%"),
    "hello*": ("hello*",),
    "hello?": ("hello?",),
    "hello[a]": ("hello[a]",),
    "hello[%": ("hello[a]",),
    r"hello\\": ("hello\\",),
    r"\%hello\_workflow\%_\_yoyo": ("%hello_workflow%x_yoyo",),
    r"\h\e\l\l\o\*": ("hello*",),
}


async def _list(
    world: World, pattern: str, *, size: int | None = None, token: str | None = None
) -> KeysLikeResponse:
    store = require(world.store, KeysLikeStore)
    request = KeysLikeRequest(
        partition=world.partition, pattern=pattern, page_size=size, continue_token=token
    )
    return await store.keys_like(request)


async def _expect_keys(world: World, pattern: str, expected: Iterable[str]) -> None:
    response = await _list(world, pattern)
    expect_equal(sorted(response.keys), sorted(expected), f"keys like {pattern!r}")
    expect_equal(response.continue_token, None, "token")


@cases.case(Feature.KEYS_LIKE)
async def an_empty_pattern_is_refused(world: World) -> None:
    """With an error of its own."""
    with Refused(KeysLikeEmptyPatternError):
        await _list(world, "")


@cases.case(Feature.KEYS_LIKE)
async def patterns_match_as_in_sql(world: World) -> None:
    """`%` any text, also none; `_` one character, of any language; case counts."""
    for key in _KEYS:
        await world.set(key)
    for pattern, expected in _PATTERNS.items():
        await _expect_keys(world, pattern, expected)


@cases.case(Feature.KEYS_LIKE)
async def a_backslash_escapes(world: World) -> None:
    """And what is special in other pattern languages is not special here."""
    for key in _SPECIAL_KEYS:
        await world.set(key)
    for pattern, expected in _SPECIAL_PATTERNS.items():
        await _expect_keys(world, pattern, expected)
    with Refused(InvalidRequestError):
        await _list(world, "hello\\")


@cases.case(Feature.KEYS_LIKE)
async def a_listing_comes_in_pages(world: World) -> None:
    """Each key on one page; the last page has no token, also when it is full."""
    for key in _KEYS:
        await world.set(key)
    first = await _list(world, "%", size=6)
    expect_equal(len(first.keys), 6, "keys on the first page")
    second = await _list(world, "%", size=5, token=first.continue_token)
    expect_equal(len(second.keys), 5, "keys on the second page")
    third = await _list(world, "%", size=100, token=second.continue_token)
    expect_equal((len(third.keys), third.continue_token), (1, None), "third page")
    expect_equal(sorted(first.keys + second.keys + third.keys), sorted(_KEYS), "keys of all pages")
    full = await _list(world, "%", size=len(_KEYS))
    expect_equal((len(full.keys), full.continue_token), (len(_KEYS), None), "a page of exactly all keys")


@cases.case(Feature.KEYS_LIKE)
async def many_keys_fit_on_one_page(world: World) -> None:
    """Without a page size, and with a large one."""
    keys = [f"key/{number}" for number in range(1025)]
    await world.store.bulk_set([world.set_request(key) for key in keys], parallelism=100)
    for size in (None, 100_000):
        response = await _list(world, "%", size=size)
        expect_equal(len(set(response.keys)), len(keys), "different keys")
        expect_equal((len(response.keys), response.continue_token), (len(keys), None), "page")


@cases.case(Feature.KEYS_LIKE)
async def keys_may_change_between_pages(world: World) -> None:
    """A token stays good when keys before it go away and others come."""
    for key in ("k1", "k2", "k3", "k4"):
        await world.set(key)
    first = await _list(world, "k%", size=3)
    expect_equal(len(first.keys), 3, "keys")
    expect(first.continue_token, "no token")
    for key in first.keys[:2]:
        await world.delete(key)
    await world.set("k5")
    await world.set("k6")
    rest = await _list(world, "k%", size=10, token=first.continue_token)
    expect(rest.keys, "nothing on the second page")
    expect(not set(first.keys) & set(rest.keys), "a key came twice")
    expect_equal(rest.continue_token, None, "token")
    fresh = await _list(world, "k%", size=3)
    expect_equal((len(fresh.keys), bool(fresh.continue_token)), (3, True), "a fresh page of three")
    fresh = await _list(world, "k%", size=2)
    expect_equal((len(fresh.keys), bool(fresh.continue_token)), (2, True), "a fresh page of two")
    fresh = await _list(world, "k%")
    expect_equal((len(fresh.keys), fresh.continue_token), (4, None), "a fresh page of all")


@cases.case(Feature.KEYS_LIKE, Feature.TTL)
async def a_listing_leaves_expired_keys_out(world: World) -> None:
    """At once, as reads do."""
    for key, metadata in (("1", {"ttlInSeconds": "2"}), ("2", None), ("3", {"ttlInSeconds": "2"})):
        await world.set(key, metadata=metadata)

    async def only_the_second() -> bool:
        return (await _list(world, "%")).keys == ("2",)

    await world.eventually(only_the_second, "expired keys leave the listing")


@cases.case(Feature.KEYS_LIKE)
async def bad_listings_are_refused(world: World) -> None:
    """A token of somebody else's, and a page without room."""
    for token in ("not a token!", "\u00e4"):
        with Refused(InvalidRequestError):
            await _list(world, "%", token=token)
    for size in (0, -1):
        with Refused(InvalidRequestError):
            await _list(world, "%", size=size)


@cases.case(Feature.DELETE_WITH_PREFIX)
async def a_family_is_deleted_without_its_grandchildren(world: World) -> None:
    """`prefix||name`, but not `prefix||deeper||name` and not `other-prefix||name`."""
    store = require(world.store, PrefixDeleteStore)
    keys = ("prefix||key1", "prefix||key2", "prefix||prefix2||key3", "other-prefix||key1", "no-prefix")
    for key in keys:
        await world.set(key, b"")
    expect_equal(await store.delete_with_prefix(world.partition, "prefix||"), 2, "number deleted")
    left = dict.fromkeys(keys[2:], b"")
    await world.expect_values({"prefix||key1": None, "prefix||key2": None, **left})
    expect_equal(await store.delete_with_prefix(world.partition, "other-prefix"), 1, "number deleted")
    expect_equal(await store.delete_with_prefix(world.partition, "absent"), 0, "number deleted")
    await world.expect_values({"other-prefix||key1": None, "prefix||prefix2||key3": b"", "no-prefix": b""})


@cases.case(Feature.DELETE_WITH_PREFIX)
async def a_family_has_no_wildcards(world: World) -> None:
    """Characters that are special in patterns are not special in a prefix."""
    store = require(world.store, PrefixDeleteStore)
    for key in ("a%||1", "ab||1", "a_||1", "a*||1", "\u00e4||1"):
        await world.set(key, b"")
    for prefix in ("a%", "a_", "a*", "\u00e4"):
        expect_equal(await store.delete_with_prefix(world.partition, prefix), 1, f"deleted by {prefix}")
    expect_equal(await world.value("ab||1"), b"", "value")


@cases.case(Feature.DELETE_WITH_PREFIX)
async def a_large_family_is_deleted(world: World) -> None:
    """More rows than any page or transaction holds."""
    store = require(world.store, PrefixDeleteStore)
    members = [f"family||{number}" for number in range(1200)]
    others = [f"family||{number}||grandchild" for number in range(0, 1200, 10)]
    await world.store.bulk_set([world.set_request(key) for key in (*members, *others)], parallelism=200)
    expect_equal(await store.delete_with_prefix(world.partition, "family"), len(members), "number deleted")
    requests = [GetRequest(partition=world.partition, key=key) for key in (*members, *others)]
    left = [answer.key for answer in await world.store.bulk_get(requests) if answer.data is not None]
    expect_equal(left, others, "keys that are left")


@cases.case(Feature.DELETE_WITH_PREFIX)
async def an_empty_prefix_is_refused(world: World) -> None:
    """It would delete everything."""
    store = require(world.store, PrefixDeleteStore)
    await world.set("||key", b"")
    for prefix in ("", "||"):
        with Refused(InvalidRequestError) as refused:
            await store.delete_with_prefix(world.partition, prefix)
        expect("prefix is required" in str(refused.error), f"the message is {refused.error}")
    expect_equal(await world.value("||key"), b"", "value")
