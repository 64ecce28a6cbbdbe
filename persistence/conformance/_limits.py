"""Limits: what is too large is refused as a whole, before anything is written."""

from __future__ import annotations

from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import ETagMismatchError, TransactionTooLargeError
from persistence.store import CheckRequest, Feature, GetRequest, Operation, SetRequest

__all__ = ["cases"]

cases: Final = Cases()

_AFFORDABLE_BYTES: Final = 64 * 1024 * 1024
_AFFORDABLE_OPERATIONS: Final = 20_000


@cases.case()
async def limits_are_positive(world: World) -> None:
    """And a transaction can hold at least one value of the largest size."""
    limits = world.store.limits
    expect(min(limits.operations, limits.key_bytes, limits.value_bytes) > 0, f"limits are {limits}")
    expect(limits.transaction_bytes >= limits.value_bytes, f"limits are {limits}")


@cases.case()
async def the_longest_key_is_kept_and_a_longer_one_refused(world: World) -> None:
    """A key counts with its partition, in bytes of UTF-8."""
    room = world.store.limits.key_bytes - len(world.partition.encode())
    longest = "\u00e4" * (room // 2) + "x" * (room % 2)
    await world.set(longest, b"value")
    expect_equal(await world.value(longest), b"value", "value")
    with Refused(TransactionTooLargeError):
        await world.set(longest + "x", b"value")


@cases.case()
async def key_and_partition_share_their_limit_as_they_like(world: World) -> None:
    """Nearly all of it may be the partition's, or nearly all of it the key's."""
    room = world.store.limits.key_bytes
    for length in (len(world.partition), room // 2, room - 1):
        partition = world.partition.ljust(length, "p")
        for key in ("k" * (room - length), "l" * (room - length)):
            await world.store.set(SetRequest(partition=partition, key=key, value=key.encode()))
            found = await world.store.get(GetRequest(partition=partition, key=key))
            expect_equal(found.data, key.encode(), f"value with a partition of {length} bytes")
            if Feature.SCAN in world.store.features:
                rows = [row.value async for row in world.ordered.scan(partition, key, "")]
                expect_equal(rows, [key.encode()], f"rows of a partition of {length} bytes")
            with Refused(TransactionTooLargeError):
                await world.store.set(SetRequest(partition=partition, key=key + "x", value=b""))


@cases.case()
async def the_largest_values_are_read_together(world: World) -> None:
    """In bulk and by a scan: what they come to may be more than a message of the server's holds."""
    size = min(world.store.limits.value_bytes, _AFFORDABLE_BYTES // 4)
    keys = ["a", "b", "c"]
    for key in keys:
        await world.set(key, key.encode() * size)
    answers = await world.store.bulk_get([GetRequest(partition=world.partition, key=key) for key in keys])
    for key, answer in zip(keys, answers, strict=True):
        expect(answer.data == key.encode() * size, f"the value of {key} is not what was written")
    if Feature.SCAN in world.store.features:
        for reverse in (False, True):
            rows = await world.scan(reverse=reverse)
            expect_equal([row.key for row in rows], sorted(keys, reverse=reverse), "keys")
            whole = all(row.value == row.key.encode() * size for row in rows)
            expect(whole, "the values of a scan are not what was written")


@cases.case()
async def the_largest_value_is_kept_and_a_larger_one_refused(world: World) -> None:
    """Up to the limit, byte for byte."""
    size = world.store.limits.value_bytes
    if size > _AFFORDABLE_BYTES:
        return
    largest = (bytes(range(256)) * (size // 256 + 1))[:size]
    await world.set("key", largest[: size - 100])
    expect(await world.value("key") == largest[: size - 100], "the value is not what was written")
    with Refused(TransactionTooLargeError):
        await world.set("key", largest + b"x")
    expect(await world.value("key") == largest[: size - 100], "the value was changed by a refused write")
    if size + world.store.limits.key_bytes <= world.store.limits.transaction_bytes:
        await world.set("key", largest)
        expect(await world.value("key") == largest, "the largest value is not what was written")


@cases.case(Feature.TRANSACTIONAL)
async def too_many_operations_are_refused(world: World) -> None:
    """One more than the limit, and nothing is written."""
    count = world.store.limits.operations + 1
    if count > _AFFORDABLE_OPERATIONS:
        return
    operations = [world.set_request(f"key/{number}") for number in range(count)]
    with Refused(TransactionTooLargeError):
        await world.transactional.multi(operations)
    await world.expect_values({operations[0].key: None, operations[-1].key: None})


@cases.case(Feature.TRANSACTIONAL)
async def too_many_bytes_are_refused(world: World) -> None:
    """Each value is within its limit, but together they are not."""
    limits = world.store.limits
    value = bytes(min(limits.value_bytes, _AFFORDABLE_BYTES))
    count = limits.transaction_bytes // len(value) + 1
    if count > limits.operations:
        return
    operations = [world.set_request(f"key/{number}", value) for number in range(count)]
    with Refused(TransactionTooLargeError):
        await world.transactional.multi(operations)
    await world.expect_values({operations[0].key: None, operations[-1].key: None})


@cases.case(Feature.TRANSACTIONAL, Feature.ETAG)
async def as_many_operations_as_the_limit_are_carried_out(world: World) -> None:
    """Sets, then checks and sets under etags, then deletes; and one that does not hold refuses them all."""
    count = world.store.limits.operations
    if count > _AFFORDABLE_OPERATIONS:
        return
    multi = world.transactional.multi
    keys = [f"key/{number:05}" for number in range(count)]
    etag = await multi([world.set_request(key, key.encode(), first=True) for key in keys])
    half = count // 2
    operations: list[Operation] = [CheckRequest(world.partition, key, etag) for key in keys[:half]]
    operations += [world.set_request(key, b"new", etag=etag) for key in keys[half:]]
    new = await multi(operations)
    ends = {keys[0]: b"key/00000", keys[-1]: b"new"}
    await world.expect_values(ends)
    with Refused(ETagMismatchError) as refused:
        await multi(operations)
    expect_equal(refused.error.key, keys[half], "key of the refusal")
    stale = [
        world.delete_request(key, etag=etag if number < half else new) for number, key in enumerate(keys)
    ]
    stale[-1] = world.delete_request(keys[-1], etag=etag)
    with Refused(ETagMismatchError):
        await multi(stale)
    await world.expect_values(ends)
    await multi([world.delete_request(key) for key in keys])
    await world.expect_values({keys[0]: None, keys[half]: None, keys[-1]: None})


@cases.case(Feature.TRANSACTIONAL)
async def as_many_bytes_as_the_limit_are_carried_out(world: World) -> None:
    """Keys, partitions and values together; one byte more is refused."""
    limits = world.store.limits
    if limits.transaction_bytes > _AFFORDABLE_BYTES:
        return
    key_bytes = len(world.partition) + len("0000")
    whole, rest = divmod(limits.transaction_bytes, limits.value_bytes + key_bytes)
    sizes = [limits.value_bytes] * whole + ([rest - key_bytes] if rest > key_bytes else [])
    if len(sizes) > limits.operations:
        return
    operations = [
        world.set_request(f"{number:04}", bytes((number % 256,)) * size) for number, size in enumerate(sizes)
    ]
    if rest > key_bytes:
        with Refused(TransactionTooLargeError):
            await world.transactional.multi(
                [*operations[:-1], world.set_request(operations[-1].key, operations[-1].value + b"x")]
            )
        expect_equal(await world.value(operations[0].key), None, "value after a refused write")
    await world.transactional.multi(operations)
    for operation in operations:
        expect(await world.value(operation.key) == operation.value, f"value of {operation.key} is another")
    await world.transactional.multi([world.delete_request(operation.key) for operation in operations])
