"""Etags: who may write, decided the same way by every store."""

from __future__ import annotations

from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import ETagInvalidError, ETagMismatchError
from persistence.store import Concurrency, DeleteOptions, DeleteRequest, Feature, SetOptions, SetRequest

__all__ = ["cases"]

cases: Final = Cases(Feature.ETAG)


@cases.case()
async def a_value_has_an_etag(world: World) -> None:
    """Every row that is read carries an etag."""
    await world.set("key", b"value")
    await world.etag("key")


@cases.case()
async def every_write_changes_the_etag(world: World) -> None:
    """Also a write of the same value."""
    seen: set[str] = set()
    for _ in range(5):
        await world.set("key", b"same")
        seen.add(await world.etag("key"))
    expect_equal(len(seen), 5, "different etags")


@cases.case()
async def a_set_with_the_right_etag_succeeds(world: World) -> None:
    """The value and the etag are new."""
    await world.set("key", b"old")
    etag = await world.etag("key")
    await world.set("key", b"new", etag=etag)
    expect_equal(await world.value("key"), b"new", "value")
    expect(await world.etag("key") != etag, "the etag is still the same")


@cases.case()
async def a_set_with_another_etag_is_refused(world: World) -> None:
    """Nothing changes, and the error names the key."""
    await world.set("key", b"old")
    stale = await world.etag("key")
    await world.set("key", b"current")
    current = await world.etag("key")
    for etag in (stale, await world.other_etag()):
        with Refused(ETagMismatchError) as refused:
            await world.set("key", b"new", etag=etag)
        expect_equal((refused.error.partition, refused.error.key), (world.partition, "key"), "error")
    expect_equal((await world.value("key"), await world.etag("key")), (b"current", current), "row")


@cases.case()
async def a_delete_with_the_right_etag_succeeds(world: World) -> None:
    """The key is absent afterwards."""
    await world.set("key", b"value")
    await world.delete("key", etag=await world.etag("key"))
    expect_equal((await world.get("key")).etag, None, "etag")
    expect_equal(await world.value("key"), None, "value")


@cases.case()
async def a_delete_with_another_etag_is_refused(world: World) -> None:
    """Nothing changes."""
    await world.set("key", b"value")
    with Refused(ETagMismatchError):
        await world.delete("key", etag=await world.other_etag())
    expect_equal(await world.value("key"), b"value", "value")


@cases.case()
async def an_etag_never_fits_an_absent_key(world: World) -> None:
    """An etag is a condition on a row that is there; nothing is created."""
    etag = await world.other_etag()
    with Refused(ETagMismatchError):
        await world.set("absent", b"value", etag=etag)
    with Refused(ETagMismatchError):
        await world.delete("absent", etag=etag)
    expect_equal(await world.value("absent"), None, "value")


@cases.case()
async def an_etag_that_no_store_gives_is_invalid(world: World) -> None:
    """It is told apart from one that is merely stale."""
    await world.set("key", b"value")
    for etag in ("not an etag", "\u00e4", "\0"):
        with Refused(ETagInvalidError):
            await world.set("key", b"new", etag=etag)
        with Refused(ETagInvalidError):
            await world.delete("key", etag=etag)
    expect_equal(await world.value("key"), b"value", "value")


@cases.case()
async def an_empty_etag_is_no_condition(world: World) -> None:
    """None and "" mean the same."""
    for etag in (None, ""):
        await world.set("key", b"first", etag=etag)
        await world.set("key", b"second", etag=etag)
        expect_equal(await world.value("key"), b"second", "value")
        await world.delete("key", etag=etag)
        await world.delete("key", etag=etag)


@cases.case()
async def an_etag_decides_whatever_the_concurrency(world: World) -> None:
    """Last-write does not overrule an etag, and first-write does not hinder it."""
    await world.set("key", b"old")
    stale = await world.etag("key")
    await world.set("key", b"current")
    for concurrency in Concurrency:
        request = SetRequest(
            partition=world.partition,
            key="key",
            value=b"new",
            etag=stale,
            options=SetOptions(concurrency=concurrency),
        )
        with Refused(ETagMismatchError):
            await world.store.set(request)
        delete = DeleteRequest(
            partition=world.partition,
            key="key",
            etag=stale,
            options=DeleteOptions(concurrency=concurrency),
        )
        with Refused(ETagMismatchError):
            await world.store.delete(delete)
    expect_equal(await world.value("key"), b"current", "value")


@cases.case()
async def first_write_without_etag_only_creates(world: World) -> None:
    """It creates an absent key and refuses to overwrite, each time anew."""
    for etag in (None, ""):
        await world.set("key", b"first", etag=etag, first=True)
        with Refused(ETagMismatchError):
            await world.set("key", b"second", etag=etag, first=True)
        expect_equal(await world.value("key"), b"first", "value")
        await world.delete("key")


@cases.case()
async def first_write_does_not_stick_to_the_key(world: World) -> None:
    """A key created by a first write can be overwritten by a plain one, and the other way round it cannot."""
    await world.set("key", b"first", first=True)
    await world.set("key", b"plain")
    expect_equal(await world.value("key"), b"plain", "value")
    with Refused(ETagMismatchError):
        await world.set("key", b"again", first=True)


@cases.case()
async def first_write_with_the_right_etag_overwrites_once(world: World) -> None:
    """The etag is the condition, and it is used up by the write."""
    await world.set("key", b"old")
    etag = await world.etag("key")
    await world.set("key", b"new", etag=etag, first=True)
    expect_equal(await world.value("key"), b"new", "value")
    expect(await world.etag("key") != etag, "the etag is still the same")
    with Refused(ETagMismatchError):
        await world.set("key", b"again", etag=etag, first=True)


@cases.case()
async def first_write_delete_refuses_a_present_key(world: World) -> None:
    """A delete that wants to be the first write of a key comes too late if there is a row."""
    await world.delete("absent", first=True)
    await world.set("key", b"value")
    with Refused(ETagMismatchError):
        await world.delete("key", first=True)
    expect_equal(await world.value("key"), b"value", "value")


@cases.case()
async def an_old_etag_does_not_come_back_with_a_new_row(world: World) -> None:
    """Delete and re-create with the same value: whoever holds the old etag must not win."""
    await world.set("key", b"value")
    old = await world.etag("key")
    await world.delete("key")
    await world.set("key", b"value")
    with Refused(ETagMismatchError):
        await world.set("key", b"late", etag=old)
    with Refused(ETagMismatchError):
        await world.delete("key", etag=old)
    expect_equal(await world.value("key"), b"value", "value")
