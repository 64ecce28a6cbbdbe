"""Deleting a family of keys."""

from __future__ import annotations

from collections.abc import Sequence

from grpc.aio import AioRpcError

from persistence.decision import Slot
from persistence.errors import CommitOutcomeUnknownError
from persistence.options import prefix_end
from persistence.paging import Window
from persistence.proto import etcd_pb2
from persistence.stores.etcd.capacity import Capacity
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.failures import is_refused, translate
from persistence.stores.etcd.keys import Keyspace
from persistence.stores.etcd.reading import Reader

__all__ = ["delete_family"]

_PAGE_ROWS = 1000
_SEPARATOR = "||"


async def delete_family(
    client: Client, keyspace: Keyspace, capacity: Capacity, reader: Reader, partition: str, family: str
) -> int:
    """Delete the keys that begin with `family` and go on without a `||`; how many there were.

    They go in several transactions if they are many.

    Raises:
        CommitOutcomeUnknownError: the server did not answer; some of them may be gone.
        StoreUnavailableError: the server cannot be reached; some of them may be gone.
    """
    window = Window(partition, family, prefix_end(family), reverse=False)
    deleted = 0
    while True:
        keys, last = await reader.keys(window, _PAGE_ROWS)
        members = [(partition, key) for key in keys if _SEPARATOR not in key[len(family) :]]
        for start in range(0, len(members), capacity.operations):
            chunk = members[start : start + capacity.operations]
            deleted += await _delete(client, keyspace, chunk)
        if last or not keys:
            return deleted
        window = window.beyond(keys[-1])


async def _delete(client: Client, keyspace: Keyspace, slots: Sequence[Slot]) -> int:
    request = etcd_pb2.TxnRequest()
    for slot in slots:
        request.success.add().request_delete_range.key = keyspace.row(slot)
    try:
        answer = await client.try_once(
            lambda connection: connection.txn, request, seconds=client.request_seconds
        )
    except AioRpcError as error:
        client.replace_current()
        if is_refused(error):
            raise translate(error, str(client.cluster)) from error
        raise CommitOutcomeUnknownError(
            f"{client.cluster} did not answer; some keys that begin with"
            f" {slots[0][1][:100]!r} in partition {slots[0][0][:100]!r} or come later may be deleted"
        ) from error
    # What was there at the moment of the deletion counts, not what was there when the keys were listed.
    return sum(operation.response_delete_range.deleted for operation in answer.responses)
