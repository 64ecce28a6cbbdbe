"""What a server takes in one request: found out, because it is a matter of the server's flags."""

from __future__ import annotations

from typing import Final

import attrs
from grpc.aio import AioRpcError

from persistence.backends import ETCD
from persistence.proto import etcd_pb2
from persistence.store import Limits
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.failures import is_too_many_operations, translate

__all__ = ["Capacity"]

_MOST_OPERATIONS: Final = 128
_REQUEST_BYTES: Final = 1472 * 1024
_OWN_OPERATIONS: Final = 2  # the commit's mark, and the nested transaction itself
_LEAST_BYTES: Final = 4096


class Capacity:
    """What is known of a server's limits.

    Attributes:
        operations: of one transaction: the nested ones, and the largest list within one of them.
        request_bytes: that a request of several multis may have.
        limits: what one multi of ours may hold.
    """

    def __init__(self) -> None:
        self.operations: int = _MOST_OPERATIONS
        self.request_bytes: int = _REQUEST_BYTES
        self.limits: Limits = ETCD.limits

    def refuse_bytes(self, size: int, *, alone: bool) -> None:
        """Take note that a request was too large for the server: one multi alone, or several."""
        if alone:
            largest = max(_LEAST_BYTES, min(self.limits.transaction_bytes, size - 1))
            self.limits = attrs.evolve(
                self.limits, transaction_bytes=largest, value_bytes=min(ETCD.limits.value_bytes, largest)
            )
        self.request_bytes = max(_LEAST_BYTES, min(self.request_bytes, size) // 2)

    def take_operations(self, operations: int) -> None:
        """Take note of how many operations the server takes."""
        self.operations = max(_OWN_OPERATIONS + 1, operations)
        most = min(ETCD.limits.operations, self.operations - _OWN_OPERATIONS)
        self.limits = attrs.evolve(self.limits, operations=most)

    async def find_out(self, client: Client, key: bytes) -> None:
        """Ask how many operations the server takes (its flag `--max-txn-ops`).

        Raises:
            PersistenceError: it does not answer.
        """
        if await _takes(client, key, _MOST_OPERATIONS):
            self.take_operations(_MOST_OPERATIONS)
            return
        taken, refused = _OWN_OPERATIONS, _MOST_OPERATIONS
        while refused - taken > 1:
            middle = (taken + refused) // 2
            if await _takes(client, key, middle):
                taken = middle
            else:
                refused = middle
        self.take_operations(taken)


async def _takes(client: Client, key: bytes, operations: int) -> bool:
    question = etcd_pb2.RequestOp(request_range=etcd_pb2.RangeRequest(key=key, keys_only=True))
    request = etcd_pb2.TxnRequest(success=[question] * operations)
    try:
        await client.try_hard(lambda connection: connection.txn, request)
    except AioRpcError as error:
        if is_too_many_operations(error):
            return False
        raise translate(error, str(client.cluster)) from error
    return True
