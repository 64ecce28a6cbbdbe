"""Transactions: all or nothing, and every condition about the state before."""

from __future__ import annotations

from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import ETagInvalidError, ETagMismatchError, InvalidRequestError
from persistence.store import ABSENT, Absent, CheckRequest, Feature, GetRequest, Operation, SetRequest

__all__ = ["cases"]

cases: Final = Cases(Feature.TRANSACTIONAL)


def _check(world: World, key: str, etag: str | Absent) -> CheckRequest:
    return CheckRequest(world.partition, key, etag)


@cases.case()
async def a_multi_sets_and_deletes(world: World) -> None:
    """Several groups after another, each deleting what the one before left."""
    multi = world.transactional.multi
    await multi([world.set_request("int", b"123"), world.set_request("old", b"to be deleted")])
    await world.expect_values({"int": b"123", "old": b"to be deleted"})
    await multi([world.set_request("struct", b"{}"), world.delete_request("old")])
    await world.expect_values({"int": b"123", "struct": b"{}", "old": None})
    await multi([world.delete_request("struct"), world.delete_request("int")])
    await world.expect_values({"int": None, "struct": None})


@cases.case()
async def an_empty_multi_does_nothing(world: World) -> None:
    """No operations, no error, no etag."""
    expect_equal(await world.transactional.multi([]), "", "etag")


@cases.case()
async def deleting_an_absent_key_in_a_multi_is_no_error(world: World) -> None:
    """As with a single delete."""
    await world.transactional.multi([world.delete_request("absent")])


@cases.case()
async def writes_happen_in_order(world: World) -> None:
    """Set then delete leaves nothing, delete then set leaves the value, and the last of two sets counts."""
    await world.set("1", b"old")
    operations: list[Operation] = [
        world.delete_request("1"),
        world.set_request("2", b"value2"),
        world.delete_request("2"),
        world.delete_request("3"),
        world.set_request("3", b"value3"),
        world.set_request("4", b"first"),
        world.set_request("4", b"last"),
    ]
    await world.transactional.multi(operations)
    await world.expect_values({"1": None, "2": None, "3": b"value3", "4": b"last"})


@cases.case(Feature.ETAG)
async def a_multi_answers_with_the_etag_of_what_it_wrote(world: World) -> None:
    """So that its rows can be written again without reading them."""
    etag = await world.transactional.multi([world.set_request("a"), world.set_request("b")])
    expect_equal((await world.etag("a"), await world.etag("b")), (etag, etag), "etags")
    again = await world.transactional.multi([world.set_request("a", b"new", etag=etag)])
    expect_equal((await world.etag("a"), await world.etag("b")), (again, etag), "etags")
    expect(again != etag, "two multis gave the same etag")
    expect_equal(await world.transactional.multi([_check(world, "a", again)]), "", "etag of a mere check")


@cases.case(Feature.ETAG)
async def one_stale_etag_leaves_nothing_written(world: World) -> None:
    """Wherever it stands, with sets and with deletes; the error names its key."""
    await world.set("held", b"old")
    await world.set("deleted", b"old")
    stale = await world.other_etag()
    refusing: list[Operation] = [
        world.set_request("held", b"new", etag=stale),
        world.delete_request("held", etag=stale),
        _check(world, "held", stale),
        _check(world, "held", ABSENT),
        world.set_request("held", b"new", first=True),
        world.delete_request("held", first=True),
    ]
    harmless: list[Operation] = [world.set_request("created", b"new"), world.delete_request("deleted")]
    for operation in refusing:
        for operations in ([operation, *harmless], [*harmless, operation]):
            with Refused(ETagMismatchError) as refused:
                await world.transactional.multi(operations)
            expect_equal((refused.error.partition, refused.error.key), (world.partition, "held"), "error")
            await world.expect_values({"held": b"old", "deleted": b"old", "created": None})


@cases.case(Feature.ETAG)
async def checks_guard_without_writing(world: World) -> None:
    """A check of an etag or of absence lets the writes happen if it holds, and changes nothing itself."""
    await world.set("fence", b"value")
    fence = await world.etag("fence")
    await world.transactional.multi(
        [_check(world, "fence", fence), _check(world, "absent", ABSENT), world.set_request("key", b"written")]
    )
    await world.expect_values({"fence": b"value", "absent": None, "key": b"written"})
    expect_equal(await world.etag("fence"), fence, "etag of the fence")


@cases.case(Feature.ETAG)
async def a_check_of_an_etag_refuses_an_absent_key(world: World) -> None:
    """A row that is gone has no etag."""
    etag = await world.other_etag()
    with Refused(ETagMismatchError):
        await world.transactional.multi([_check(world, "absent", etag), world.set_request("key")])
    expect_equal(await world.value("key"), None, "value")


@cases.case(Feature.ETAG)
async def an_impossible_etag_in_a_multi_is_invalid(world: World) -> None:
    """And nothing is written."""
    with Refused(ETagInvalidError):
        await world.transactional.multi([world.set_request("key"), _check(world, "other", "not an etag")])
    expect_equal(await world.value("key"), None, "value")


@cases.case(Feature.ETAG)
async def conditions_see_the_state_before_the_multi(world: World) -> None:
    """Not what earlier operations of the same multi have done."""
    await world.set("held", b"old")
    etag = await world.etag("held")
    await world.transactional.multi(
        [
            world.set_request("created", b"new"),
            _check(world, "created", ABSENT),
            world.delete_request("held"),
            world.set_request("held", b"new", etag=etag),
            world.set_request("twice", b"first", first=True),
            world.set_request("twice", b"last", first=True),
        ]
    )
    await world.expect_values({"created": b"new", "held": b"new", "twice": b"last"})
    with Refused(ETagMismatchError):
        await world.transactional.multi(
            [world.delete_request("held"), world.set_request("held", b"", first=True)]
        )
    expect_equal(await world.value("held"), b"new", "value")


@cases.case(Feature.ETAG)
async def one_key_may_be_named_several_times(world: World) -> None:
    """All its conditions must hold, and its last write counts."""
    await world.set("key", b"old")
    etag = await world.etag("key")
    await world.transactional.multi(
        [
            _check(world, "key", etag),
            world.set_request("key", b"first", etag=etag),
            world.delete_request("key", etag=etag),
            world.set_request("key", b"last"),
        ]
    )
    expect_equal(await world.value("key"), b"last", "value")
    current = await world.etag("key")
    with Refused(ETagMismatchError):
        await world.transactional.multi(
            [_check(world, "key", current), world.delete_request("key", etag=etag)]
        )
    expect_equal(await world.value("key"), b"last", "value")


@cases.case()
async def two_partitions_in_one_multi_are_refused(world: World) -> None:
    """A transaction stays within one partition."""
    other = SetRequest(partition=f"{world.partition}/other", key="key", value=b"")
    with Refused(InvalidRequestError):
        await world.transactional.multi([world.set_request("key"), other])
    expect_equal(await world.value("key"), None, "value")


@cases.case()
async def a_bad_operation_leaves_nothing_written(world: World) -> None:
    """A bad key or time to live is found before anything happens."""
    bad: list[Operation] = [
        world.set_request(""),
        world.delete_request("a\0b"),
        world.set_request("key", metadata={"ttlInSeconds": "foo"}),
    ]
    for operation in bad:
        with Refused(InvalidRequestError):
            await world.transactional.multi([world.set_request("good"), operation])
    expect_equal(await world.value("good"), None, "value")


@cases.case()
async def a_multi_of_many_rows_is_carried_out(world: World) -> None:
    """As many as a thousand, or as the limits allow."""
    count = min(1000, world.store.limits.operations)
    keys = [f"key/{number:04}" for number in range(count)]
    await world.transactional.multi([world.set_request(key, key.encode()) for key in keys])
    await world.expect_values({key: key.encode() for key in keys})
    await world.transactional.multi([world.delete_request(key) for key in keys])
    await world.expect_values(dict.fromkeys(keys))


@cases.case(Feature.ETAG)
async def the_etag_of_a_multi_is_that_of_every_row_it_wrote(world: World) -> None:
    """However they are read: one by one, in bulk, by a scan."""
    await world.set("kept", b"")
    await world.set("key/01", b"old")
    kept = await world.etag("kept")
    operations: list[Operation] = [_check(world, "kept", kept), world.delete_request("absent")]
    count = min(50, world.store.limits.operations - len(operations))
    keys = [f"key/{number:02}" for number in range(count)]
    etag = await world.transactional.multi([*operations, *(world.set_request(key) for key in keys)])
    expect_equal([await world.etag(key) for key in keys], [etag] * len(keys), "etags")
    requests = [GetRequest(partition=world.partition, key=key) for key in keys]
    expect_equal(
        [row.etag for row in await world.store.bulk_get(requests)], [etag] * len(keys), "etags in bulk"
    )
    if Feature.SCAN in world.store.features:
        rows = {row.key: row.etag for row in await world.scan()}
        expect_equal(rows, {"kept": kept, **dict.fromkeys(keys, etag)}, "etags of a scan")
    await world.transactional.multi([world.delete_request(key, etag=etag) for key in keys])
    await world.expect_values(dict.fromkeys(keys))
