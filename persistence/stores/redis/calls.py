"""The transactions of a batch as calls of one script: one call carries many transactions of a partition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from persistence.batcher import Result
from persistence.decision import Transaction, Write, mismatch
from persistence.errors import CommitOutcomeUnknownError, StoreCorruptError
from persistence.stores.redis.dispatch import Request
from persistence.stores.redis.layout import ETAG_BYTES, Layout, row_head, row_tail
from persistence.stores.redis.scripts import COMMIT

__all__ = ["Call", "calls_of"]

# A server does nothing else while a script runs: some milliseconds at most.
_TRANSACTIONS: Final = 100
_KEYS: Final = 2000
_BYTES: Final = 8 * 1024 * 1024

_ABSENT: Final = "-" * ETAG_BYTES
_FOREIGN: Final = "!" * ETAG_BYTES
_NUMBER_DIGITS: Final = 4
_OUTCOME_BYTES: Final = _NUMBER_DIGITS + ETAG_BYTES
_FIRST_ROW: Final = 3  # keys are numbered from 1 in Lua, and the first two are index and log


class Call:
    """Some transactions of one partition, in order; carried out together, each with its own outcome.

    Attributes:
        partition: of the transactions.
        id: by which the log says that this call was carried out.
        members: where the transactions stand in the batch.
        request: what is sent, once `close` was called.
        strong: one of the transactions wants the replicas to have it.
        unreplicated: what to tell those, if the replicas did not have it in time.
    """

    def __init__(self, layout: Layout, partition: str, lane: str, number: int, identity: str) -> None:
        self.partition = partition
        self.id = identity
        self.members: list[int] = []
        self.request: Request = Request(layout.hash_slot(partition), ())
        self.strong: bool = False
        self.unreplicated = ""
        self.log: bytes = layout.log(partition, f"{lane}.{number}")
        self._layout = layout
        self._prefix = layout.row_prefix(partition)
        self._numbers: dict[str, int] = {}
        self._plan: list[str] = []
        self._values: list[bytes] = []
        self._transactions: list[tuple[Transaction, str]] = []
        self._size = 0

    def takes(self, transaction: Transaction) -> bool:
        """Whether there is room for another transaction."""
        operations = len(transaction.conditions) + len(transaction.writes)
        return not self.members or (
            len(self.members) < _TRANSACTIONS
            and len(self._numbers) + operations <= _KEYS
            and self._size + transaction.size <= _BYTES
        )

    def add(self, index: int, transaction: Transaction, etag: str) -> None:
        """Take a transaction; `etag` is what its rows get."""
        self.members.append(index)
        self._transactions.append((transaction, etag))
        self._size += transaction.size
        self.strong = self.strong or transaction.strong
        plan = self._plan
        plan.append(f"{len(transaction.conditions):04}")
        for (_, key), expected in transaction.conditions:
            plan.append(f"{self._number(key):04}{expected or _ABSENT}")
        # Only the last write of a key counts.
        writes = {write[0][1]: write for write in transaction.writes}
        plan.append(f"{len(writes):04}")
        for key, write in writes.items():
            plan.append(f"{self._number(key):04}{self._kind(write, etag)}")

    def _number(self, key: str) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers) + _FIRST_ROW
        return number

    def _kind(self, write: Write, etag: str) -> str:
        """How the plan calls a write; keeps its values for the arguments."""
        _, value, ttl_seconds, content_type = write
        if value is None:
            return "d"
        if ttl_seconds is not None:
            self._values += (
                row_head(etag, content_type, expires=True),
                b"%d" % (ttl_seconds * 1000),
                row_tail(value, content_type),
            )
            return "e"
        self._values.append(row_head(etag, content_type, expires=False) + row_tail(value, content_type))
        return "s"

    def close(self, publish: bytes) -> None:
        """Make the request; `publish` is the command by which changes are told, or nothing."""
        prefix = self._prefix
        index = self._layout.index(self.partition)
        keys = [index, self.log, *(prefix + key.encode() for key in self._numbers)]
        plan = "".join(self._plan).encode()
        channel = self._layout.channel(self.partition)
        self.request.command = COMMIT.call(keys, [self.id.encode(), publish, channel, plan, *self._values])

    def results(self, outcome: bytes, where: str) -> list[Result]:
        """What became of each transaction, by the script's answer ("" if all were carried out)."""
        results: list[Result]
        if not outcome:
            results = [_given(transaction, etag) for transaction, etag in self._transactions]
        else:
            text = outcome.decode("latin-1")
            pieces = [text[start : start + _OUTCOME_BYTES] for start in range(0, len(text), _OUTCOME_BYTES)]
            results = [
                self._result(piece, transaction, etag, where)
                for piece, (transaction, etag) in zip(pieces, self._transactions, strict=True)
            ]
        if self.unreplicated:
            # It is on the master, where others see it already; but a failover may lose it.
            for index, (transaction, _) in enumerate(self._transactions):
                if transaction.strong and isinstance(results[index], str):
                    results[index] = CommitOutcomeUnknownError(self.unreplicated)
        return results

    def _result(self, piece: str, transaction: Transaction, etag: str, where: str) -> Result:
        number, found = int(piece[:_NUMBER_DIGITS]), piece[_NUMBER_DIGITS:]
        if not number:
            return _given(transaction, etag)
        slot = (self.partition, list(self._numbers)[number - _FIRST_ROW])
        if found == _FOREIGN:
            name = self._layout.row(*slot).decode()
            return StoreCorruptError(
                f"key {name!r} in Redis at {where}, the place of key {slot[1]!r} in partition"
                f" {slot[0]!r}, is no string: it is not ours"
            )
        actual = None if found == _ABSENT else found
        expected = next(
            expected for place, expected in transaction.conditions if place == slot and expected != actual
        )
        return mismatch(slot, expected, actual)


def _given(transaction: Transaction, etag: str) -> str:
    """The answer to a transaction that was carried out."""
    return etag if any(write[1] is not None for write in transaction.writes) else ""


def calls_of(
    batch: Sequence[Transaction], etags: Sequence[str], layout: Layout, lane: str, publish: bytes
) -> list[Call]:
    """The calls that carry out a batch; those of one partition are to be made in order."""
    calls: list[Call] = []
    latest: dict[str, tuple[Call, int]] = {}
    for index, (transaction, etag) in enumerate(zip(batch, etags, strict=True)):
        partition = transaction.partition
        call, number = latest.get(partition, (None, -1))
        if call is None or not call.takes(transaction):
            call = Call(layout, partition, lane, number + 1, etag)
            latest[partition] = (call, number + 1)
            calls.append(call)
        call.add(index, transaction, etag)
    for call in calls:
        call.close(publish)
    return calls
