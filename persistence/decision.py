"""Who wins in a batch: one routine that decides concurrent transactions for every backend.

A batch is decided in arrival order over the etags that were stored when it began: a winner's writes are
seen by the transactions after it, and only the last state of each key is left to write. So a batch costs
one read and one write however many transactions share it, and means the same as one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from persistence.errors import ETagMismatchError, InvalidRequestError, TransactionTooLargeError
from persistence.options import (
    check_delete_request_options,
    check_etag,
    check_partition,
    check_set_request_options,
    check_text,
    parse_ttl,
)
from persistence.store import (
    ABSENT,
    CheckRequest,
    Concurrency,
    Consistency,
    DeleteRequest,
    Limits,
    Operation,
    SetRequest,
)

__all__ = [
    "Condition",
    "Decision",
    "Slot",
    "Transaction",
    "Write",
    "decide",
    "mismatch",
    "new_etags",
    "prepare",
]

# These are plain tuples, not named ones: a few are made for every transaction, in the event loop's thread.
Slot: TypeAlias = tuple[str, str]
"""(partition, key)."""
Condition: TypeAlias = tuple[Slot, str | None]
"""(slot, the etag it must have, or None: it must be absent)."""
Write: TypeAlias = tuple[Slot, bytes | None, int | None, str | None]
"""(slot, value or None to delete, time to live in seconds, content type)."""

# The very objects that requests have when no options are given: checked by identity, which costs nothing.
_DEFAULT_SET: Final = SetRequest(key="key", value=b"").options
_DEFAULT_DELETE: Final = DeleteRequest(key="key").options
_ETAG_BYTES: Final = 8


class Transaction:
    """A multi as backends carry it out: its conditions, then its writes.

    Attributes:
        partition: the partition of all its keys.
        conditions: what must hold of the state before the transaction.
        writes: in order; a later one of a key replaces an earlier one.
        size: bytes of keys and values.
        strong: a request asks for strong consistency: its replicas shall have the write, too.
    """

    __slots__ = ("conditions", "partition", "size", "strong", "writes")

    def __init__(
        self, partition: str, conditions: Sequence[Condition], writes: Sequence[Write], size: int
    ) -> None:
        self.partition: str = partition
        self.conditions: Sequence[Condition] = conditions
        self.writes: Sequence[Write] = writes
        self.size: int = size
        self.strong: bool = False


class Decision(NamedTuple):
    """What a batch comes to.

    Attributes:
        results: an entry a transaction, in order: the etag of what it writes, "" if it writes no value,
            or why it was refused.
        writes: the last write of each key that changes, with the etag it gets.
    """

    results: list[str | ETagMismatchError]
    writes: dict[Slot, tuple[Write, str]]


def new_etags(count: int) -> list[str]:
    """Fresh etags, one a transaction: random, so that one never comes back after delete and re-creation."""
    digits = os.urandom(_ETAG_BYTES * count).hex()
    return [digits[start : start + 16] for start in range(0, len(digits), 16)]


def decide(batch: Sequence[Transaction], stored: MutableMapping[Slot, str], etags: Sequence[str]) -> Decision:
    """Decide a batch in arrival order.

    All conditions of one transaction see the state before it. A row that has expired is absent.

    Args:
        batch: the transactions.
        stored: the etags now stored of every slot in a condition, absent slots left out; changed in place.
        etags: the etag that each transaction gives to what it writes.
    """
    results: list[str | ETagMismatchError] = []
    writes: dict[Slot, tuple[Write, str]] = {}
    current = stored.get
    for transaction, etag in zip(batch, etags, strict=True):
        for slot, expected in transaction.conditions:
            if current(slot) != expected:
                results.append(mismatch(slot, expected, current(slot)))
                break
        else:
            given = ""
            for write in transaction.writes:
                slot = write[0]
                writes[slot] = (write, etag)
                if write[1] is None:
                    stored.pop(slot, None)
                else:
                    stored[slot] = given = etag
            results.append(given)
    return Decision(results, writes)


def mismatch(slot: Slot, expected: str | None, found: str | None) -> ETagMismatchError:
    """The error for a condition that does not hold: the etag expected and the one found (None: absent)."""
    partition, key = slot
    wanted = "to be absent" if expected is None else f"etag {expected}"
    actual = "is absent" if found is None else f"has etag {found}"
    return ETagMismatchError(
        f"key {key!r} in partition {partition!r} {actual}, expected {wanted}", partition=partition, key=key
    )


def prepare(operations: Sequence[Operation], limits: Limits) -> Transaction:
    """Check a multi and bring it into the form that backends carry out.

    Raises:
        InvalidRequestError: a bad key, value, option or time to live, or more than one partition.
        ETagInvalidError: an etag that no store can have given out.
        TransactionTooLargeError: over `limits`.
    """
    if len(operations) > limits.operations:
        raise TransactionTooLargeError(
            f"{len(operations)} operations in one transaction; at most {limits.operations} are possible"
        )
    partition = operations[0].partition
    partition_bytes = check_partition(partition)
    key_bytes_left = limits.key_bytes - partition_bytes
    conditions: list[Condition] = []
    writes: list[Write] = []
    size = 0
    strong = False
    for operation in operations:
        key = operation.key
        if operation.partition != partition:
            raise InvalidRequestError(
                f"one transaction names the partitions {partition!r} and {operation.partition!r}"
            )
        if not key:
            raise InvalidRequestError(f"empty key in partition {partition[:100]!r}")
        key_bytes = check_text(key, "key")
        if key_bytes > key_bytes_left:
            raise TransactionTooLargeError(
                f"key {key[:100]!r}... has {partition_bytes + key_bytes} bytes with its partition; "
                f"at most {limits.key_bytes} are possible"
            )
        slot = (partition, key)
        size += partition_bytes + key_bytes
        if isinstance(operation, SetRequest):
            size += _prepare_set(operation, slot, limits, conditions, writes)
            if operation.options is not _DEFAULT_SET and operation.options.consistency is Consistency.STRONG:
                strong = True
        elif isinstance(operation, CheckRequest):
            expected = operation.etag
            if expected is ABSENT:
                conditions.append((slot, None))
            else:
                check_etag(partition, key, expected)
                conditions.append((slot, expected))
        else:
            _prepare_delete(operation, slot, conditions, writes)
            if operation.options.consistency is Consistency.STRONG:
                strong = True
    if size > limits.transaction_bytes:
        raise TransactionTooLargeError(
            f"a transaction of {size} bytes; at most {limits.transaction_bytes} are possible"
        )
    transaction = Transaction(partition, conditions, writes, size)
    transaction.strong = strong
    return transaction


def _prepare_set(
    request: SetRequest, slot: Slot, limits: Limits, conditions: list[Condition], writes: list[Write]
) -> int:
    value = request.value
    if type(value) is not bytes:
        raise InvalidRequestError(f"the value of key {slot[1]!r} is {type(value).__name__}, not bytes")
    value_bytes = len(value)
    if value_bytes > limits.value_bytes:
        raise TransactionTooLargeError(
            f"the value of key {slot[1]!r} in partition {slot[0]!r} has {value_bytes} bytes; "
            f"at most {limits.value_bytes} are possible"
        )
    options = request.options
    if options is not _DEFAULT_SET:
        check_set_request_options(request)
    etag = request.etag
    if etag:
        check_etag(slot[0], slot[1], etag)
        conditions.append((slot, etag))
    elif options.concurrency is Concurrency.FIRST_WRITE:
        conditions.append((slot, None))
    metadata = request.metadata
    if metadata:
        writes.append((slot, value, parse_ttl(metadata), _content_type(metadata)))
    else:
        writes.append((slot, value, None, None))
    return value_bytes


def _content_type(metadata: Mapping[str, str]) -> str | None:
    content_type = metadata.get("contentType")
    if content_type is not None:
        check_text(content_type, "contentType")
    return content_type or None


def _prepare_delete(
    request: DeleteRequest, slot: Slot, conditions: list[Condition], writes: list[Write]
) -> None:
    options = request.options
    if options is not _DEFAULT_DELETE:
        check_delete_request_options(request)
    etag = request.etag
    if etag:
        check_etag(slot[0], slot[1], etag)
        conditions.append((slot, etag))
    elif options.concurrency is Concurrency.FIRST_WRITE:
        # Deleting is a write, and somebody else's was first if the row is there.
        conditions.append((slot, None))
    writes.append((slot, None, None, None))
