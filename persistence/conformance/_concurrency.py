"""Many callers at once, some of whom go away."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import ETagMismatchError, StoreClosedError
from persistence.features import require
from persistence.store import (
    ABSENT,
    CheckRequest,
    Feature,
    GetRequest,
    GetResponse,
    KeysLikeRequest,
    KeysLikeStore,
    OrderedStore,
    SetRequest,
)

__all__ = ["cases"]

cases: Final = Cases()

_CALLERS = 20
_ROUNDS = 5


@cases.case(Feature.ETAG)
async def one_of_racing_first_writes_wins(world: World) -> None:
    """Exactly one, and its value stays."""
    for turn in range(_ROUNDS):
        key = f"key/{turn}"
        attempts = [world.set(key, str(number).encode(), first=True) for number in range(_CALLERS)]
        expect_equal(await world.winners(attempts), 1, "winners")


@cases.case(Feature.ETAG)
async def racing_increments_lose_none(world: World) -> None:
    """Read, add one, write under the etag, again on mismatch: the counter ends where it should."""
    await world.set("counter", b"0")

    async def increment() -> None:
        for _ in range(_ROUNDS):
            while True:
                response = await world.get("counter")
                value = str(int(response.data or b"0") + 1).encode()
                try:
                    await world.set("counter", value, etag=response.etag)
                except ETagMismatchError:
                    continue
                break

    await asyncio.gather(*(increment() for _ in range(8)))
    expect_equal(await world.value("counter"), str(8 * _ROUNDS).encode(), "counter")


@cases.case(Feature.ETAG, Feature.TRANSACTIONAL)
async def two_stores_race_without_losing_increments(world: World) -> None:
    """The same through two stores of one database."""
    await world.set("counter", b"0")
    async with world.open_store() as other:

        async def increment(through: World) -> None:
            for _ in range(_ROUNDS):
                while True:
                    response = await through.get("counter")
                    value = str(int(response.data or b"0") + 1).encode()
                    try:
                        await through.set("counter", value, etag=response.etag)
                    except ETagMismatchError:
                        continue
                    break

        second = World(other, world.open_store, world.wait)
        second.partition = world.partition
        await asyncio.gather(*(increment(through) for through in (world, second) for _ in range(4)))
    expect_equal(await world.value("counter"), str(8 * _ROUNDS).encode(), "counter")


@cases.case(Feature.ETAG, Feature.TRANSACTIONAL)
async def racing_writes_of_one_key_have_different_etags(world: World) -> None:
    """Also if they share a commit: whose value was replaced must not pass for the one who replaced it."""
    for turn in range(_ROUNDS):
        writes = [[world.set_request("key", f"{turn} {number}".encode())] for number in range(_CALLERS)]
        etags = await asyncio.gather(*(world.transactional.multi(operations) for operations in writes))
        expect_equal(len(set(etags)), _CALLERS, "different etags")
        expect(await world.etag("key") in etags, "the row has an etag that nobody was given")
        last = etags.index(await world.etag("key"))
        expect_equal(await world.value("key"), writes[last][0].value, "value")
        for number, etag in enumerate(etags):
            if number != last:
                with Refused(ETagMismatchError):
                    await world.set("key", b"late", etag=etag)


@cases.case(Feature.ETAG, Feature.TRANSACTIONAL)
async def crossing_checks_of_absence_let_one_win(world: World) -> None:
    """No write skew: of "A absent, write B" and "B absent, write A" at most one may win."""
    for turn in range(_CALLERS):
        a, b = f"{turn}/a", f"{turn}/b"
        attempts = [
            world.transactional.multi(
                [CheckRequest(world.partition, absent, ABSENT), world.set_request(written)]
            )
            for absent, written in ((a, b), (b, a))
        ]
        expect_equal(await world.winners(attempts), 1, "winners")


@cases.case(Feature.ETAG, Feature.TRANSACTIONAL)
async def concurrent_multis_succeed_and_fail_each_alone(world: World) -> None:
    """A refused multi does not take along those that were committed with it."""
    stale = await world.other_etag()
    await world.set("held", b"old")

    async def attempt(number: int) -> bool:
        operations = [world.set_request(f"key/{number}", str(number).encode())]
        if number % 3 == 0:
            operations.append(world.set_request("held", b"new", etag=stale))
        try:
            await world.transactional.multi(operations)
        except ETagMismatchError:
            return False
        return True

    outcomes = await asyncio.gather(*(attempt(number) for number in range(3 * _CALLERS)))
    expect_equal(outcomes, [number % 3 != 0 for number in range(3 * _CALLERS)], "outcomes")
    await world.expect_values(
        {f"key/{number}": str(number).encode() if won else None for number, won in enumerate(outcomes)}
    )
    expect_equal(await world.value("held"), b"old", "value of the held key")


@cases.case(Feature.TRANSACTIONAL)
async def partitions_do_not_disturb_each_other(world: World) -> None:
    """Concurrent multis of many partitions are all carried out."""
    partitions = [f"{world.partition}/{number}" for number in range(_CALLERS)]
    await asyncio.gather(
        *(
            world.transactional.multi(
                [SetRequest(partition=name, key=key, value=name.encode()) for key in ("a", "b")]
            )
            for name in partitions
        )
    )
    for name in partitions:
        for key in ("a", "b"):
            response = await world.store.get(GetRequest(partition=name, key=key))
            expect_equal(response.data, name.encode(), "value")


@cases.case(Feature.TRANSACTIONAL)
async def a_cancelled_caller_leaves_all_or_nothing(world: World) -> None:
    """Its multi may or may not be carried out, but not by half; others notice nothing."""
    tasks: list[asyncio.Task[str]] = []
    for number in range(_CALLERS):
        operations = [world.set_request(f"{number}/{part}") for part in ("a", "b")]
        tasks.append(asyncio.create_task(_multi(world, operations)))
    for turn, task in enumerate(tasks[::2]):
        if turn % 3 == 0:
            await asyncio.sleep(0)
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    await world.set("after", b"written")  # comes after what the cancelled callers have left behind
    for number, outcome in enumerate(outcomes):
        halves = {await world.value(f"{number}/{part}") for part in ("a", "b")}
        expect_equal(len(halves), 1, f"different fates of the halves of multi {number}")
        if isinstance(outcome, str):
            expect_equal(halves, {b""}, f"values of multi {number}")
    expect_equal(await world.value("after"), b"written", "value")


async def _multi(world: World, operations: list[SetRequest]) -> str:
    return await world.transactional.multi(operations)


@cases.case()
async def cancelled_readers_disturb_nobody(world: World) -> None:
    """Wherever a read is broken off, the next one gets its own answer, and not what was left of that one."""
    keys = [f"key/{number:03}" for number in range(250)]
    await world.store.bulk_set([world.set_request(key, key.encode() * 50) for key in keys])
    for turn in range(_ROUNDS):
        gets = [asyncio.create_task(_value(world, key)) for key in random.sample(keys, 20)]
        reads: list[asyncio.Task[bool]] = [asyncio.create_task(_pings(world)) for _ in range(2)]
        if Feature.SCAN in world.store.features:
            reads += [asyncio.create_task(_scans_right(world, keys, number % 2 == 1)) for number in range(8)]
        if Feature.KEYS_LIKE in world.store.features:
            reads += [asyncio.create_task(_lists_right(world, keys, f"key/{number}%")) for number in range(3)]
        await asyncio.sleep(turn / 500)
        everything = [*gets, *reads]
        for task in random.sample(everything, len(everything) // 2):
            task.cancel()
        outcomes = await asyncio.gather(*everything, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            expect(outcome is not False, "a read that was not cancelled got a wrong answer")
    expect_equal([await _value(world, key) for key in keys[:20]], [True] * 20, "values are right")


async def _value(world: World, key: str) -> bool:
    return await world.value(key) == key.encode() * 50


async def _pings(world: World) -> bool:
    await world.store.ping()
    return True


async def _scans_right(world: World, keys: list[str], reverse: bool) -> bool:
    rows = await world.scan(reverse=reverse)
    ordered = keys[::-1] if reverse else keys
    return [(row.key, row.value) for row in rows] == [(key, key.encode() * 50) for key in ordered]


async def _lists_right(world: World, keys: list[str], pattern: str) -> bool:
    request = KeysLikeRequest(partition=world.partition, pattern=pattern)
    found = (await require(world.store, KeysLikeStore).keys_like(request)).keys
    return sorted(found) == [key for key in keys if key.startswith(pattern[:-1])]


@cases.case()
async def closing_carries_out_what_was_accepted(world: World) -> None:
    """Writes that were under way when the store is closed are committed or refused, and never hang."""
    store = world.open_store()
    async with store:
        requests = [world.set_request(f"key/{number}", b"value") for number in range(_CALLERS)]
        writes = [asyncio.create_task(store.set(request)) for request in requests]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    for request, outcome in zip(requests, outcomes, strict=True):
        if outcome is None:
            expect_equal(await world.value(request.key), b"value", f"value of {request.key}")


@cases.case(Feature.ETAG)
async def a_loser_can_try_again(world: World) -> None:
    """A refusal leaves the store as usable as before."""
    await world.set("key", b"1")
    with Refused(ETagMismatchError):
        await world.set("key", b"2", first=True)
    await world.set("key", b"3", etag=await world.etag("key"))
    expect_equal(await world.value("key"), b"3", "value")


@cases.case()
async def every_writer_sees_what_it_has_written(world: World) -> None:
    """At once, and among the writes and reads of others."""

    async def write_and_read(number: int) -> None:
        for turn in range(_ROUNDS):
            value = f"{number} {turn}".encode()
            await world.set(f"key/{number}", value)
            expect_equal(await world.value(f"key/{number}"), value, f"value of key/{number}")

    await asyncio.gather(*(write_and_read(number) for number in range(3 * _CALLERS)))


@cases.case()
async def closing_lets_reads_end(world: World) -> None:
    """Reads that are under way when the store is closed are answered or refused, and never hang."""
    keys = [f"key/{number:03}" for number in range(200)]
    await world.store.bulk_set([world.set_request(key, key.encode()) for key in keys])
    for turns in range(4):
        store = world.open_store()
        async with store:
            gets = [
                asyncio.create_task(store.get(GetRequest(partition=world.partition, key=key))) for key in keys
            ]
            scans: list[asyncio.Task[list[str]]] = []
            if Feature.SCAN in store.features:
                scans = [asyncio.create_task(_keys(require(store, OrderedStore), world)) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
        answers = await asyncio.gather(*gets, return_exceptions=True)
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, GetResponse):
                expect_equal(answer.data, key.encode(), f"value of {key}")
            else:
                expect(isinstance(answer, StoreClosedError), f"{answer!r} is not StoreClosedError")
        for found in await asyncio.gather(*scans, return_exceptions=True):
            if isinstance(found, list):
                expect_equal(found, keys, "keys")
            else:
                expect(isinstance(found, StoreClosedError), f"{found!r} is not StoreClosedError")


async def _keys(store: OrderedStore, world: World) -> list[str]:
    return [item.key async for item in store.scan(world.partition, "", "")]
