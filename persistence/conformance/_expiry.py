"""Time to live: an expired row is absent for everybody, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from persistence.conformance.case import Cases, ConformanceError, Refused, World, expect, expect_equal
from persistence.errors import ETagMismatchError, InvalidRequestError
from persistence.features import require
from persistence.store import (
    ABSENT,
    CheckRequest,
    Feature,
    GetRequest,
    KeysLikeRequest,
    KeysLikeStore,
    Operation,
)

__all__ = ["cases"]

cases: Final = Cases(Feature.TTL)

# Some databases count whole seconds, or raise shorter times to two.
_SHORT_SECONDS: Final = 2
_LONG_SECONDS: Final = 3600


def _ttl(seconds: object) -> Mapping[str, str]:
    return {"ttlInSeconds": str(seconds)}


async def _expire(world: World, *keys: str) -> None:
    """Wait until these keys are gone."""

    async def gone() -> bool:
        return all([await world.value(key) is None for key in keys])

    await world.eventually(gone, f"expiry of {keys}")


def _expire_time(metadata: Mapping[str, str]) -> datetime:
    text = metadata.get("ttlExpireTime")
    if text is None:
        raise ConformanceError(f"no ttlExpireTime in {metadata!r}")
    moment = datetime.fromisoformat(text)
    expect_equal(moment.utcoffset(), timedelta(), f"offset of {text}")
    return moment


@cases.case()
async def a_bad_time_to_live_is_refused(world: World) -> None:
    """Not a whole number, below -1 or too large: nothing is written."""
    for text in ("foo", "", "1.5", "1e3", "-2", str(2**31), " 1", "1_0", "0x1", "9" * 5000):
        with Refused(InvalidRequestError):
            await world.set("key", b"value", metadata=_ttl(text))
    expect_equal(await world.value("key"), None, "value")


@cases.case()
async def a_row_is_there_until_it_expires(world: World) -> None:
    """And then it is gone for reads, with its etag."""
    await world.set("key", b"value", metadata=_ttl(_SHORT_SECONDS))
    expect_equal(await world.value("key"), b"value", "value")
    await _expire(world, "key")
    expect_equal((await world.get("key")).etag, None, "etag")


@cases.case()
async def no_time_to_live_means_no_expiry_time(world: World) -> None:
    """Absent, 0 and -1 are the same; the largest number is a time like others."""
    for metadata in (None, _ttl(0), _ttl(-1)):
        await world.set("key", b"value", metadata=metadata)
        expect("ttlExpireTime" not in (await world.get("key")).metadata, f"an expiry time with {metadata}")
    await world.set("key", b"value", metadata=_ttl(2**31 - 1))
    expect_equal(await world.value("key"), b"value", "value")


@cases.case()
async def the_expiry_time_is_told(world: World) -> None:
    """In RFC 3339, UTC; single and bulk reads tell the same."""
    await world.set("one", b"123", metadata=_ttl(_LONG_SECONDS))
    await world.set("two", b"234", metadata=_ttl(2 * _LONG_SECONDS))
    one = _expire_time((await world.get("one")).metadata)
    two = _expire_time((await world.get("two")).metadata)
    expect(abs(two - one - timedelta(seconds=_LONG_SECONDS)) < timedelta(minutes=10), f"{one} and {two}")
    requests = [GetRequest(partition=world.partition, key=key) for key in ("one", "two")]
    answers = await world.store.bulk_get(requests)
    expect_equal([answer.data for answer in answers], [b"123", b"234"], "values")
    expect_equal([_expire_time(answer.metadata) for answer in answers], [one, two], "expiry times")


@cases.case()
async def the_expiry_time_is_about_right(world: World) -> None:
    """By the clock of this machine; a test that sets the clock knows better, and is not asked."""
    if world.wait is not asyncio.sleep:
        return
    await world.set("key", b"", metadata=_ttl(_LONG_SECONDS))
    left = _expire_time((await world.get("key")).metadata) - datetime.now(UTC)
    expect(abs(left - timedelta(seconds=_LONG_SECONDS)) < timedelta(minutes=10), f"{left} are left")


@cases.case()
async def a_write_without_time_to_live_makes_the_row_stay(world: World) -> None:
    """-1 and nothing both take an earlier time to live away."""
    for key, metadata in (("minus one", _ttl(-1)), ("nothing", None)):
        await world.set(key, b"first", metadata=_ttl(_SHORT_SECONDS))
        await world.set(key, b"second", metadata=metadata)
        expect("ttlExpireTime" not in (await world.get(key)).metadata, f"{key} still expires")
    await world.set("witness", b"", metadata=_ttl(_SHORT_SECONDS))
    await _expire(world, "witness")
    await world.expect_values({"minus one": b"second", "nothing": b"second"})


@cases.case(Feature.ETAG)
async def an_expired_row_is_absent_for_conditions(world: World) -> None:
    """A first write creates anew; the old etag is worth nothing."""
    for key in ("created", "etag", "deleted"):
        await world.set(key, b"old", metadata=_ttl(_SHORT_SECONDS))
    etag, deleted = await world.etag("etag"), await world.etag("deleted")
    await _expire(world, "created", "etag", "deleted")
    await world.set("created", b"new", first=True)
    expect_equal(await world.value("created"), b"new", "value")
    with Refused(ETagMismatchError):
        await world.set("etag", b"new", etag=etag)
    with Refused(ETagMismatchError):
        await world.delete("deleted", etag=deleted)
    await world.delete("deleted", first=True)
    await world.expect_values({"etag": None, "deleted": None})


@cases.case(Feature.ETAG, Feature.TRANSACTIONAL)
async def an_expired_row_is_absent_for_checks(world: World) -> None:
    """A lease that has run out can be taken by whoever checks that it is absent."""
    await world.set("lease", b"old owner", metadata=_ttl(_SHORT_SECONDS))
    etag = await world.etag("lease")
    take: list[Operation] = [
        CheckRequest(world.partition, "lease", ABSENT),
        world.set_request("lease", b"new owner", metadata=_ttl(_LONG_SECONDS)),
    ]
    with Refused(ETagMismatchError):
        await world.transactional.multi(take)
    await _expire(world, "lease")
    with Refused(ETagMismatchError):
        await world.transactional.multi([CheckRequest(world.partition, "lease", etag)])
    await world.transactional.multi(take)
    expect_equal(await world.value("lease"), b"new owner", "value")


@cases.case(Feature.SCAN)
async def scans_leave_expired_rows_out(world: World) -> None:
    """Both ways, and a limit counts living rows."""
    for number in range(10):
        metadata = _ttl(_SHORT_SECONDS) if number % 2 else None
        await world.set(f"key/{number}", metadata=metadata)
    await _expire(world, "key/1", "key/3", "key/5", "key/7", "key/9")
    living = [f"key/{number}" for number in range(0, 10, 2)]
    expect_equal(await world.keys(), living, "keys")
    expect_equal(await world.keys(reverse=True), living[::-1], "keys backwards")
    expect_equal(await world.keys(limit=2), living[:2], "keys with a limit")


@cases.case(Feature.SCAN)
async def a_scan_passes_over_many_expired_rows(world: World) -> None:
    """More of them than a page holds, at the beginning, in the middle and at the end."""
    count = 1300
    expiring = {*range(150), *range(300, 1200), *range(1250, count)}
    keys = [f"key/{number:04}" for number in range(count)]
    await world.store.bulk_set(
        [
            world.set_request(key, metadata=_ttl(_SHORT_SECONDS) if number in expiring else None)
            for number, key in enumerate(keys)
        ]
    )
    await _expire(world, keys[0], keys[300], keys[-1])
    await _expire(world, *(keys[number] for number in sorted(expiring)[::50]))
    living = [key for number, key in enumerate(keys) if number not in expiring]
    expect_equal(await world.keys(), living, "keys")
    expect_equal(await world.keys(reverse=True), living[::-1], "keys backwards")
    expect_equal(await world.keys(limit=160), living[:160], "keys with a limit")
    expect_equal(await world.keys(keys[300]), living[150:], "keys from an expired one")
    if Feature.KEYS_LIKE in world.store.features:
        store = require(world.store, KeysLikeStore)
        page = await store.keys_like(KeysLikeRequest(partition=world.partition, pattern="key/%"))
        expect_equal(list(page.keys), living, "keys of a listing")


@cases.case(Feature.TRANSACTIONAL)
async def the_last_write_of_a_multi_decides_about_expiry(world: World) -> None:
    """Whether the row expires, and when."""
    await world.transactional.multi(
        [
            world.set_request("stays", metadata=_ttl(_LONG_SECONDS)),
            world.set_request("stays"),
            world.set_request("goes"),
            world.set_request("goes", metadata=_ttl(_LONG_SECONDS)),
            world.set_request("comes back", metadata=_ttl(_LONG_SECONDS)),
            world.delete_request("comes back"),
            world.set_request("comes back", b"new"),
        ]
    )
    for key, expires in (("stays", False), ("goes", True), ("comes back", False)):
        response = await world.get(key)
        expect_equal("ttlExpireTime" in response.metadata, expires, f"whether {key!r} expires")


@cases.case()
async def a_content_type_and_an_expiry_time_go_together(world: World) -> None:
    """Both are kept, and both go with the next write."""
    metadata = {**_ttl(_LONG_SECONDS), "contentType": "application/json"}
    await world.set("key", b"{}", metadata=metadata)
    response = await world.get("key")
    _expire_time(response.metadata)
    expect_equal(response.content_type, "application/json", "content type")
    await world.set("key", b"{}")
    response = await world.get("key")
    expect_equal((response.content_type, len(response.metadata)), (None, 0), "content type and metadata")
