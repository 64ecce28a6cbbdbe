"""From our transactions to etcd's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from persistence.decision import Slot, Transaction, Write
from persistence.proto import etcd_pb2
from persistence.stores.etcd.envelope import pack, revision_of
from persistence.stores.etcd.keys import Keyspace
from persistence.stores.etcd.leases import Lease

__all__ = ["add_transaction", "condition_slots", "last_writes", "times_to_live"]

_EQUAL_AT_CREATION = etcd_pb2.Compare.CREATE
_EQUAL_AT_CHANGE = etcd_pb2.Compare.MOD


def last_writes(transaction: Transaction) -> Collection[Write]:
    """The last write of each key: etcd refuses a request that writes a key twice."""
    if len(transaction.writes) == 1:
        return transaction.writes
    return {write[0]: write for write in transaction.writes}.values()


def times_to_live(transactions: Iterable[Transaction]) -> set[int]:
    """The times to live, in seconds, that transactions give to rows."""
    return {
        write[2]
        for transaction in transactions
        for write in last_writes(transaction)
        if write[2] is not None and write[1] is not None
    }


def condition_slots(transactions: Iterable[Transaction]) -> list[Slot]:
    """The slots that transactions check, each once."""
    return list(dict.fromkeys(slot for transaction in transactions for slot, _ in transaction.conditions))


def add_transaction(
    request: etcd_pb2.TxnRequest, transaction: Transaction, keyspace: Keyspace, leases: Mapping[int, Lease]
) -> None:
    """Add a transaction to a request, as a nested one that succeeds or fails for itself."""
    nested = request.success.add().request_txn
    for slot, expected in transaction.conditions:
        # The number is given even if it is 0: without one etcd takes the condition to hold.
        if expected is None:
            nested.compare.add(target=_EQUAL_AT_CREATION, key=keyspace.row(slot), create_revision=0)
        else:
            nested.compare.add(
                target=_EQUAL_AT_CHANGE, key=keyspace.row(slot), mod_revision=revision_of(expected)
            )
    for slot, value, ttl, content_type in last_writes(transaction):
        operation = nested.success.add()
        if value is None:
            operation.request_delete_range.key = keyspace.row(slot)
            continue
        put = operation.request_put
        put.key = keyspace.row(slot)
        if ttl is None:
            put.value = pack(value, None, content_type)
        else:
            lease = leases[ttl]
            put.value = pack(value, lease.expires_milliseconds, content_type)
            put.lease = lease.id
