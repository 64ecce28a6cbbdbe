"""Limits: what is too large is refused as a whole, before anything is written."""

from __future__ import annotations

from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import TransactionTooLargeError
from persistence.store import Feature

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
