"""The whole table of who may write: every request, on every state of the row, by every way to write."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final

import attrs

from persistence.conformance.case import Cases, World, expect, expect_equal
from persistence.errors import BulkError, ETagMismatchError
from persistence.features import require
from persistence.store import (
    ABSENT,
    CheckRequest,
    Concurrency,
    DeleteOptions,
    DeleteRequest,
    Feature,
    GetResponse,
    SetOptions,
    SetRequest,
    TransactionalStore,
)

__all__ = ["cases"]

cases: Final = Cases(Feature.ETAG)

_ETAGS: Final = ("none", "empty", "right", "old", "another's")


@attrs.frozen
class _Row:
    """One row of the table: who asks for what, and what is there.

    Attributes:
        deletes: it is a delete, else a set.
        etag: which one is given.
        concurrency: of the options.
        present: the key has a value.
    """

    deletes: bool
    etag: str
    concurrency: Concurrency
    present: bool

    @property
    def key(self) -> str:
        """A key that no other row has."""
        kind = "delete" if self.deletes else "set"
        return f"{kind}, etag {self.etag}, {self.concurrency.name}, {'present' if self.present else 'absent'}"

    @property
    def allowed(self) -> bool:
        """What the contract says: a given etag decides alone; without one, a first write finds nothing."""
        if self.etag not in {"none", "empty"}:
            return self.present and self.etag == "right"
        return not (self.present and self.concurrency is Concurrency.FIRST_WRITE)


_TABLE: Final = tuple(
    _Row(deletes, etag, concurrency, present)
    for deletes, etag, concurrency, present in itertools.product(
        (False, True), _ETAGS, Concurrency, (False, True)
    )
    if present or etag != "right"  # there is no right one for an absent key
)

_Write = Callable[[World, SetRequest | DeleteRequest], Awaitable[object]]


async def _singly(world: World, request: SetRequest | DeleteRequest) -> None:
    if isinstance(request, SetRequest):
        await world.store.set(request)
    else:
        await world.store.delete(request)


async def _in_bulk(world: World, request: SetRequest | DeleteRequest) -> None:
    try:
        if isinstance(request, SetRequest):
            await world.store.bulk_set([request])
        else:
            await world.store.bulk_delete([request])
    except BulkError as error:
        raise error.errors[0].error from error


async def _in_a_multi(world: World, request: SetRequest | DeleteRequest) -> None:
    nobody = CheckRequest(world.partition, f"{request.key}, nobody's", ABSENT)
    await require(world.store, TransactionalStore).multi([nobody, request])


@cases.case()
async def every_row_of_the_table_holds_for_single_writes(world: World) -> None:
    """Set and delete, with every etag and concurrency, on a row that is there and on one that is not."""
    await _check_table(world, _singly)


@cases.case()
async def every_row_of_the_table_holds_in_bulk(world: World) -> None:
    """The same through the bulk forms."""
    await _check_table(world, _in_bulk)


@cases.case(Feature.TRANSACTIONAL)
async def every_row_of_the_table_holds_in_a_multi(world: World) -> None:
    """The same as an operation of a transaction."""
    await _check_table(world, _in_a_multi)


async def _check_table(world: World, write: _Write) -> None:
    # All at once, so that those that are refused share commits with those that are not.
    await asyncio.gather(*(_check_row(world, row, write) for row in _TABLE))


async def _check_row(world: World, row: _Row, write: _Write) -> None:
    key = row.key
    await world.set(key, b"old")
    old = await world.etag(key)
    if row.present:
        await world.set(key, b"current")
    else:
        await world.delete(key)
    before = await world.get(key)
    etags = {"none": None, "empty": "", "right": before.etag, "old": old}
    etag = etags[row.etag] if row.etag in etags else await world.other_etag()
    refused = None
    try:
        await write(world, _request(world, row, etag))
    except ETagMismatchError as error:
        refused = error
    expect(row.allowed == (refused is None), f"{key}: allowed is {row.allowed}, and it met {refused!r}")
    if refused is not None:
        expect_equal((refused.partition, refused.key), (world.partition, key), f"{key}: the error's key")
    _check_after(row, before, await world.get(key))


def _request(world: World, row: _Row, etag: str | None) -> SetRequest | DeleteRequest:
    if row.deletes:
        delete_options = DeleteOptions(concurrency=row.concurrency)
        return DeleteRequest(partition=world.partition, key=row.key, etag=etag, options=delete_options)
    options = SetOptions(concurrency=row.concurrency)
    return SetRequest(partition=world.partition, key=row.key, value=b"new", etag=etag, options=options)


def _check_after(row: _Row, before: GetResponse, after: GetResponse) -> None:
    if not row.allowed:
        expect_equal((after.data, after.etag), (before.data, before.etag), f"{row.key}: what is there")
    elif row.deletes:
        expect_equal((after.data, after.etag), (None, None), f"{row.key}: what is there")
    else:
        expect_equal(after.data, b"new", f"{row.key}: value")
        expect(after.etag and after.etag != before.etag, f"{row.key}: the etag is {after.etag!r}")
