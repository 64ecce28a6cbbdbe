"""Which transactions of a batch can share a request.

etcd evaluates the conditions of all nested transactions of a request before it writes anything, and refuses
two writes of one key. So transactions share a request only if none checks or writes what another writes;
several may check the same key, as an engine's transactions check its fence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from persistence.decision import Slot, Transaction
from persistence.stores.etcd.capacity import Capacity

__all__ = ["Plan", "plan"]

_OPERATION_BYTES: Final = 64
_CONDITION_BYTES: Final = 2048


class Plan(NamedTuple):
    """What to do now, and what then.

    Attributes:
        requests: the transactions of each request, as indexes into the batch.
        deferred: those that wait for the outcome of others.
    """

    requests: list[list[int]]
    deferred: list[int]


def plan(
    batch: Sequence[Transaction], waiting: Iterable[int], capacity: Capacity, *, prefix_bytes: int, most: int
) -> Plan:
    """Spread those that wait over at most so many requests, in their order; the first one always goes."""
    requests: list[list[int]] = []
    deferred: list[int] = []
    checked: set[Slot] = set()
    written: set[Slot] = set()
    request: list[int] = []
    largest = size = 0
    for index in waiting:
        transaction = batch[index]
        checks = [slot for slot, _ in transaction.conditions]
        writes = [write[0] for write in transaction.writes]
        if not (written.isdisjoint(checks) and written.isdisjoint(writes) and checked.isdisjoint(writes)):
            deferred.append(index)
            continue
        inner = max(len(checks), len(writes))
        own_size = _wire_bytes(transaction, prefix_bytes)
        fits = (
            # The request's mark counts, too.
            2 + len(request) + max(largest, inner) <= capacity.operations
            and size + own_size <= capacity.request_bytes
        )
        if not request or not fits:
            if len(requests) == most:
                deferred.append(index)
                continue
            request = []
            requests.append(request)
            largest = size = 0
        request.append(index)
        checked.update(checks)
        written.update(writes)
        largest = max(largest, inner)
        size += own_size
    return Plan(requests, deferred)


def _wire_bytes(transaction: Transaction, prefix_bytes: int) -> int:
    """About how many bytes a transaction has in a request, rather more than less."""
    conditions, writes = len(transaction.conditions), len(transaction.writes)
    # A key with a condition may be sent twice, and its size is not known alone.
    repeated = min(transaction.size, conditions * _CONDITION_BYTES)
    return transaction.size + repeated + (conditions + writes) * (_OPERATION_BYTES + prefix_bytes)
