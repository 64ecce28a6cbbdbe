"""Reading: rows by key, many in a request; pages of a partition, bounded in bytes as well."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from grpc.aio import AioRpcError

from persistence.decision import Slot
from persistence.errors import StoreCorruptError
from persistence.gathering import Rows
from persistence.paging import Page, RowSizes, Window
from persistence.proto import etcd_pb2
from persistence.store import GetResponse, Item
from persistence.stores.etcd.capacity import Capacity
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.envelope import etag_of, unpack, unpack_value
from persistence.stores.etcd.failures import (
    is_answer_too_large,
    is_out_of_space,
    is_too_many_operations,
    translate,
)
from persistence.stores.etcd.keys import Keyspace

__all__ = ["Reader"]

_PAGE_BYTES: Final = 8 * 1024 * 1024
_LESS: Final = 8
"""So many times fewer rows are asked for after an answer that was too large."""
_NUL: Final = b"\0"


class Reader:
    """Reads what the whole cluster has agreed on, unless told that one member's word will do."""

    def __init__(self, client: Client, keyspace: Keyspace, capacity: Capacity) -> None:
        self._client = client
        self._keyspace = keyspace
        self._capacity = capacity
        self._sizes = RowSizes(_PAGE_BYTES)

    async def rows(self, slots: Sequence[Slot], *, eventual: bool) -> Rows:
        """Rows by key; absent ones are left out, an error stands in the place of its row."""
        answers = await self._ranges(
            [etcd_pb2.RangeRequest(key=self._keyspace.row(slot), serializable=eventual) for slot in slots]
        )
        return {slot: _row(row) for slot, answer in zip(slots, answers, strict=True) for row in answer.kvs}

    async def etags(self, slots: Sequence[Slot], revision: int) -> dict[Slot, str]:
        """The etags that rows had at a revision; absent rows are left out."""
        answers = await self._ranges(
            [
                etcd_pb2.RangeRequest(key=self._keyspace.row(slot), revision=revision, keys_only=True)
                for slot in slots
            ]
        )
        return {
            slot: etag_of(row.mod_revision)
            for slot, answer in zip(slots, answers, strict=True)
            for row in answer.kvs
        }

    async def _ranges(self, requests: Sequence[etcd_pb2.RangeRequest]) -> Sequence[etcd_pb2.RangeResponse]:
        if len(requests) == 1:
            return [await self._range(requests[0])]
        groups = await asyncio.gather(*map(self._group, _groups(requests, self._capacity.operations)))
        return [answer for group in groups for answer in group]

    async def _range(self, request: etcd_pb2.RangeRequest) -> etcd_pb2.RangeResponse:
        return await self._client.ask(lambda connection: connection.range, request)

    async def _group(self, requests: Sequence[etcd_pb2.RangeRequest]) -> Sequence[etcd_pb2.RangeResponse]:
        """Several ranges in one request."""
        request = etcd_pb2.TxnRequest(success=[etcd_pb2.RequestOp(request_range=one) for one in requests])
        try:
            answer = await self._client.try_hard(lambda connection: connection.txn, request)
        except AioRpcError as error:
            if not (is_out_of_space(error) or is_too_many_operations(error) or is_answer_too_large(error)):
                raise translate(error, str(self._client.cluster)) from error
            return await asyncio.gather(*map(self._range, requests))
        return [operation.response_range for operation in answer.responses]

    async def page(self, window: Window, rows: int) -> Page:
        """At most so many rows from the beginning of a window."""
        asked = self._sizes.fitting(rows)
        try:
            answer = await self._read(window, asked)
        except AioRpcError as error:
            if asked == 1 or not is_answer_too_large(error):
                raise translate(error, str(self._client.cluster)) from error
            return await self.page(window, max(1, asked // _LESS))
        items = [
            Item(
                self._keyspace.text(window.partition, row.key),
                unpack_value(row.key, row.value),
                etag_of(row.mod_revision),
            )
            for row in answer.kvs
        ]
        self._sizes.learn(len(items), sum(len(item.value) for item in items))
        return Page(items, not answer.more)

    async def keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        """At most so many keys from the beginning of a window, and whether they were all."""
        try:
            answer = await self._read(window, rows, keys_only=True)
        except AioRpcError as error:
            raise translate(error, str(self._client.cluster)) from error
        return [self._keyspace.text(window.partition, row.key) for row in answer.kvs], not answer.more

    async def _read(self, window: Window, rows: int, *, keys_only: bool = False) -> etcd_pb2.RangeResponse:
        first = self._keyspace.partition(window.partition)
        start, end = first + window.start.encode(), first + window.end.encode()
        if window.after and not window.reverse:
            start += _NUL
        if not window.end:
            end = self._keyspace.partition_end(window.partition)
        if start >= end:
            return etcd_pb2.RangeResponse()
        request = etcd_pb2.RangeRequest(key=start, range_end=end, limit=rows, keys_only=keys_only)
        if window.reverse:
            request.sort_order = etcd_pb2.RangeRequest.DESCEND
        # No order is the order of keys, too, and one that etcd need not sort.
        return await self._client.try_hard(lambda connection: connection.range, request)


def _row(row: etcd_pb2.KeyValue) -> GetResponse | StoreCorruptError:
    try:
        return unpack(row.key, row.value, row.mod_revision)
    except StoreCorruptError as error:
        return error


def _groups(
    requests: Sequence[etcd_pb2.RangeRequest], size: int
) -> Iterator[Sequence[etcd_pb2.RangeRequest]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
