"""Bulk forms: each item for itself, answers in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from persistence.bulk import bulk_values
from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import BulkError, ETagMismatchError, InvalidRequestError
from persistence.store import BulkGetResponse, Feature, GetRequest

__all__ = ["cases"]

cases: Final = Cases()


async def _bulk_get(world: World, keys: Sequence[str], parallelism: int = 0) -> Sequence[BulkGetResponse]:
    requests = [GetRequest(partition=world.partition, key=key) for key in keys]
    return await world.store.bulk_get(requests, parallelism=parallelism)


@cases.case()
async def bulk_writes_and_reads_every_item(world: World) -> None:
    """All are written, and answers come in the order of the requests, duplicates too."""
    values = {"int": b"123", "bool": b"true", "bytes": b"\x01", "text": b"hello", "empty": b""}
    await world.store.bulk_set([world.set_request(key, value) for key, value in values.items()])
    await world.expect_values(values)
    asked = [*reversed(values), "int"]
    answers = await _bulk_get(world, asked)
    expect_equal([answer.key for answer in answers], asked, "keys")
    expect_equal([answer.partition for answer in answers], [world.partition] * len(asked), "partitions")
    expect_equal([answer.data for answer in answers], [values[key] for key in asked], "values")
    expect_equal([answer.error for answer in answers], [None] * len(asked), "errors")


@cases.case()
async def an_absent_key_in_a_bulk_read_is_no_error(world: World) -> None:
    """Its entry is empty."""
    await world.set("there", b"value")
    there, absent = await _bulk_get(world, ["there", "absent"])
    expect_equal(there.data, b"value", "value")
    expect_equal((absent.key, absent.data, absent.etag, absent.error), ("absent", None, None, None), "entry")


@cases.case()
async def a_bad_key_in_a_bulk_read_is_the_error_of_its_entry(world: World) -> None:
    """The call does not fail, and the other keys are read."""
    await world.set("there", b"value")
    bad, there = await _bulk_get(world, ["", "there"])
    expect(isinstance(bad.error, InvalidRequestError), f"error is {bad.error!r}")
    expect_equal((there.data, there.error), (b"value", None), "entry")


@cases.case()
async def values_alone_are_read_in_order(world: World) -> None:
    """By stores that can: duplicates too, and nothing for what is absent."""
    values = {f"key/{number}": f"{number}".encode() for number in range(1100)} | {"empty": b""}
    await world.store.bulk_set([world.set_request(key, value) for key, value in values.items()])
    keys = ["absent", *reversed(values), "key/7", "absent"]
    read = await bulk_values(world.store, world.partition, keys)
    expect_equal(list(read), [values.get(key) for key in keys], "values")
    expect_equal(list(await bulk_values(world.store, world.partition, [])), [], "values of nothing")
    with Refused(InvalidRequestError):
        await bulk_values(world.store, world.partition, ["key/7", ""])


@cases.case()
async def bulk_delete_deletes_every_item(world: World) -> None:
    """Present or not."""
    await world.set("a", b"")
    await world.set("b", b"")
    await world.store.bulk_delete([world.delete_request(key) for key in ("a", "absent", "b")])
    await world.expect_values({"a": None, "b": None})


@cases.case()
async def an_empty_bulk_does_nothing(world: World) -> None:
    """No items, no answers, no error."""
    await world.store.bulk_set([])
    await world.store.bulk_delete([])
    expect_equal(list(await world.store.bulk_get([])), [], "answers")


@cases.case()
async def a_bound_of_parallelism_changes_nothing_else(world: World) -> None:
    """Bulk forms with a bound do the same, also with a bound above the number of items."""
    keys = [f"key/{number}" for number in range(20)]
    for parallelism in (1, 3, 100, -1):
        requests = [world.set_request(key, f"{key}{parallelism}".encode()) for key in keys]
        await world.store.bulk_set(requests, parallelism=parallelism)
        answers = await _bulk_get(world, keys, parallelism)
        expect_equal([a.data for a in answers], [request.value for request in requests], "values")
        await world.store.bulk_delete([world.delete_request(key) for key in keys], parallelism=parallelism)
        await world.expect_values(dict.fromkeys(keys))


@cases.case(Feature.ETAG)
async def bulk_reads_carry_etags(world: World) -> None:
    """The same as single reads."""
    keys = ["a", "b", "c"]
    await world.store.bulk_set([world.set_request(key, key.encode()) for key in keys])
    answers = await _bulk_get(world, keys)
    expect_equal([answer.etag for answer in answers], [await world.etag(key) for key in keys], "etags")


@cases.case(Feature.ETAG)
async def a_refused_set_in_a_bulk_is_named_and_the_others_are_written(world: World) -> None:
    """The error lists the failures only; what failed is unchanged."""
    await world.set("a", b"old")
    await world.set("b", b"old")
    a, b = await world.etag("a"), await world.etag("b")
    requests = [
        world.set_request("a", b"new", etag=await world.other_etag()),
        world.set_request("b", b"new", etag=b),
    ]
    with Refused(BulkError) as refused:
        await world.store.bulk_set(requests)
    _expect_single_failure(world, refused.error, "a")
    expect_equal((await world.value("a"), await world.etag("a")), (b"old", a), "row a")
    expect_equal(await world.value("b"), b"new", "value of b")
    expect(await world.etag("b") != b, "the etag of b is still the same")


@cases.case(Feature.ETAG)
async def a_bulk_with_right_etags_succeeds(world: World) -> None:
    """Sets, then deletes."""
    keys = ["a", "b"]
    await world.store.bulk_set([world.set_request(key, b"old") for key in keys])
    old = [await world.etag(key) for key in keys]
    requests = [world.set_request(key, b"new", etag=etag) for key, etag in zip(keys, old, strict=True)]
    await world.store.bulk_set(requests)
    await world.expect_values(dict.fromkeys(keys, b"new"))
    new = [await world.etag(key) for key in keys]
    expect(not set(old) & set(new), "an etag is still the same")
    await world.store.bulk_delete(
        [world.delete_request(key, etag=etag) for key, etag in zip(keys, new, strict=True)]
    )
    entries = [(entry.key, entry.data, entry.etag) for entry in await _bulk_get(world, keys)]
    expect_equal(entries, [(key, None, None) for key in keys], "entries")


@cases.case(Feature.ETAG)
async def a_refused_delete_in_a_bulk_is_named_and_the_others_are_deleted(world: World) -> None:
    """As with sets."""
    await world.set("a", b"old")
    await world.set("b", b"old")
    b = await world.etag("b")
    requests = [
        world.delete_request("a", etag=await world.etag("a")),
        world.delete_request("b", etag=await world.other_etag()),
    ]
    with Refused(BulkError) as refused:
        await world.store.bulk_delete(requests)
    _expect_single_failure(world, refused.error, "b")
    expect_equal(await world.value("a"), None, "value of a")
    expect_equal((await world.value("b"), await world.etag("b")), (b"old", b), "row b")


def _expect_single_failure(world: World, error: BulkError, key: str) -> None:
    expect_equal([(e.partition, e.key) for e in error.errors], [(world.partition, key)], "failures")
    expect(isinstance(error.errors[0].error, ETagMismatchError), f"cause is {error.errors[0].error!r}")


@cases.case()
async def a_content_type_comes_back_from_bulk_reads(world: World) -> None:
    """As from single ones, also after it was replaced."""
    kinds = {
        "json": "application/json",
        "text": "text/plain; charset=utf-8",
        "none": None,
        "odd": "\u00e4 '%s",
    }
    for wanted in (dict.fromkeys(kinds, "first/kind"), kinds):
        await world.store.bulk_set(
            [
                world.set_request(key, metadata={"contentType": kind} if kind else None)
                for key, kind in wanted.items()
            ]
        )
        answers = await _bulk_get(world, list(wanted))
        expect_equal({answer.key: answer.content_type for answer in answers}, wanted, "content types")


@cases.case()
async def a_bulk_of_many_items_is_carried_out(world: World) -> None:
    """More than any page or round trip holds."""
    keys = [f"key/{number}" for number in range(2500)]
    await world.store.bulk_set([world.set_request(key, key.encode()) for key in keys])
    answers = await _bulk_get(world, [*keys, "absent"])
    expect_equal([answer.data for answer in answers], [*(key.encode() for key in keys), None], "values")
    await world.store.bulk_delete([world.delete_request(key) for key in keys])
    expect_equal([answer.data for answer in await _bulk_get(world, keys)], [None] * len(keys), "values")
