"""Committing: several transactions in one request, tried again while that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from grpc.aio import AioRpcError

from persistence.batcher import Result
from persistence.decision import Slot, Transaction, decide, mismatch
from persistence.errors import (
    CommitOutcomeUnknownError,
    ETagMismatchError,
    PersistenceError,
    StoreCorruptError,
    StoreUnavailableError,
    TransactionTooLargeError,
)
from persistence.proto import etcd_pb2
from persistence.stores.etcd.capacity import Capacity
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.envelope import etag_of
from persistence.stores.etcd.failures import (
    details_of,
    is_lease_missing,
    is_lost,
    is_overloaded,
    is_refused,
    is_too_large,
    is_too_many_operations,
    translate,
)
from persistence.stores.etcd.keys import Keyspace
from persistence.stores.etcd.leases import Lease, Leases
from persistence.stores.etcd.marks import Mark, new_mark
from persistence.stores.etcd.reading import Reader
from persistence.stores.etcd.requests import add_transaction, condition_slots, times_to_live

__all__ = ["Committer", "Outcome"]

_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.05
_ANSWER_SHARE: Final = 0.6
"""How much of the time that is left goes to a commit's answer; the rest is for finding out about it."""


class Outcome(NamedTuple):
    """What became of the transactions of a request.

    Attributes:
        results: an entry a transaction.
        found: etags (None: absent) that keys are now known to have.
        unavailable: set if the cluster cannot be used, so that trying anything else now makes no sense.
    """

    results: Sequence[Result]
    found: Mapping[Slot, str | None]
    unavailable: StoreUnavailableError | None = None


class _TryAgainError(Exception):
    """Nothing was written, and the cause may have been a passing one."""

    def __init__(self, cause: PersistenceError, pause_seconds: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.pause_seconds = pause_seconds


class Committer:
    """Carries out one request at a time."""

    def __init__(
        self, client: Client, keyspace: Keyspace, capacity: Capacity, reader: Reader, leases: Leases
    ) -> None:
        self._client = client
        self._keyspace = keyspace
        self._capacity = capacity
        self._reader = reader
        self._leases = leases
        self._mark: Mark | None = None

    async def carry_out(self, transactions: Sequence[Transaction], until: float) -> Outcome | None:
        """Carry out transactions that do not touch each other; None if they are too many for one request.

        Raises:
            StoreCorruptError: the cluster says that its data are damaged.
        """
        late = StoreUnavailableError(f"{self._client.cluster} did not answer in time")
        failure: PersistenceError = late
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                if self._now() >= until:
                    break
                try:
                    return await self._attempt(transactions, until)
                except _TryAgainError as error:
                    failure = error.cause
                    await asyncio.sleep(error.pause_seconds * attempt)
        except StoreCorruptError:
            raise
        except PersistenceError as error:
            failure = error
        if isinstance(failure, StoreUnavailableError):
            return Outcome([failure] * len(transactions), {}, failure)
        unknown = isinstance(failure, CommitOutcomeUnknownError)
        return Outcome([failure] * len(transactions), {}, late if unknown else None)

    async def aclose(self) -> None:
        """Delete the mark."""
        if self._mark is not None:
            await self._mark.revoke(self._client)

    async def _attempt(self, transactions: Sequence[Transaction], until: float) -> Outcome | None:
        if not self._client.connected:
            # Connect with a question, so that a server that is down has surely not got the commit.
            await self._client.ask(
                lambda connection: connection.range,
                etcd_pb2.RangeRequest(key=self._keyspace.meta, keys_only=True),
                seconds=max(0.0, until - self._now()),
            )
        mark = await self._fresh_mark(until)
        leases = await self._leases.grant(times_to_live(transactions), max(0.0, until - self._now()))
        left = until - self._now()
        if left <= 0:
            self._leases.give_back(leases.values())
            raise StoreUnavailableError(f"{self._client.cluster} did not answer in time")
        request = mark.begin()
        for transaction in transactions:
            add_transaction(request, transaction, self._keyspace, leases)
        self._mark = None  # until it is known again what it should be
        try:
            answer = await self._client.try_once(
                lambda connection: connection.txn, request, seconds=left * _ANSWER_SHARE
            )
        except AioRpcError as error:
            if is_refused(error):
                self._mark = mark
                self._leases.give_back(leases.values())
                return await self._refused(error, transactions, request.ByteSize())
            self._client.replace_current()
            revision = await mark.settle(self._client, until)
            if revision is None:
                self._leases.give_back(leases.values())
                raise _TryAgainError(translate(error, str(self._client.cluster))) from error
            outcome = await self._look_back(transactions, revision)
        else:
            if answer.succeeded:
                revision = answer.header.revision
                mark.committed(revision)
                self._mark = mark
                succeeded = [nested.response_txn.succeeded for nested in answer.responses[1:]]
                outcome = await self._outcome(transactions, revision, succeeded)
            elif (revision := mark.earlier(answer)) is not None:
                outcome = await self._look_back(transactions, revision)
            else:
                self._leases.give_back(leases.values())
                gone = f"the mark of commits in {self._client.cluster} was deleted or set back to a backup's"
                raise _TryAgainError(StoreUnavailableError(gone))
        self._give_back_unused(leases, transactions, outcome)
        return outcome

    async def _fresh_mark(self, until: float) -> Mark:
        mark = self._mark
        if mark is None or mark.is_old(self._now()):
            # An old one is left to its lease.
            left = max(0.0, until - self._now())
            mark = self._mark = await new_mark(self._client, self._keyspace, self._leases, left)
        return mark

    async def _refused(
        self, error: AioRpcError, transactions: Sequence[Transaction], size: int
    ) -> Outcome | None:
        where = str(self._client.cluster)
        if is_lost(error):
            self._client.replace_current()
            raise _TryAgainError(translate(error, where)) from error
        if is_lease_missing(error):
            raise _TryAgainError(translate(error, where)) from error
        if is_overloaded(error):
            raise _TryAgainError(translate(error, where), _PAUSE_SECONDS) from error
        if is_too_many_operations(error):
            before = self._capacity.operations
            await self._capacity.find_out(self._client, self._keyspace.meta)
            self._capacity.take_operations(min(self._capacity.operations, before - 1))
        elif is_too_large(error):
            self._capacity.refuse_bytes(size, alone=len(transactions) == 1)
        else:
            raise translate(error, where) from error
        if len(transactions) > 1:
            return None
        first = [*condition_slots(transactions), *(write[0] for write in transactions[0].writes)][0]
        raise TransactionTooLargeError(
            f"a transaction that begins with key {first[1][:100]!r} in partition {first[0][:100]!r} is too"
            f" large for {where}, which says: {details_of(error)} (see its flags --max-txn-ops and"
            " --max-request-bytes)"
        ) from error

    async def _outcome(
        self, transactions: Sequence[Transaction], revision: int, succeeded: Sequence[bool]
    ) -> Outcome:
        """What a request came to whose answer is known."""
        etag = etag_of(revision)
        failed = [transaction for transaction, well in zip(transactions, succeeded, strict=True) if not well]
        found: dict[Slot, str | None] = {}
        reasons: list[ETagMismatchError] = []
        if failed:
            found = await self._state_before(failed, revision)
            reasons = [_reason(transaction, found) for transaction in failed]
        results: list[Result] = []
        left = iter(reasons)
        for transaction, well in zip(transactions, succeeded, strict=True):
            results.append(_write(transaction, etag, found) if well else next(left))
        return Outcome(results, found)

    async def _state_before(self, failed: Sequence[Transaction], revision: int) -> dict[Slot, str | None]:
        slots = condition_slots(failed)
        try:
            etags = await self._reader.etags(slots, revision - 1)
        except PersistenceError:
            return {}  # they are refused, whatever it was
        return {slot: etags.get(slot) for slot in slots}

    async def _look_back(self, transactions: Sequence[Transaction], revision: int) -> Outcome:
        """What a request came to that took place at a revision, but whose answer got lost.

        etcd can still be asked for the state before, on which all conditions were decided.
        """
        slots = condition_slots(transactions)
        try:
            etags = await self._reader.etags(slots, revision - 1) if slots else {}
        except PersistenceError as error:
            raise CommitOutcomeUnknownError(
                f"a commit took place in {self._client.cluster}, but its answer got lost, and what it was"
                f" decided on could not be read: {error}"
            ) from error
        etag = etag_of(revision)
        found: dict[Slot, str | None] = {slot: etags.get(slot) for slot in slots}
        results = decide(transactions, etags, [etag] * len(transactions)).results
        for transaction, result in zip(transactions, results, strict=True):
            if isinstance(result, str):
                _write(transaction, etag, found)
        return Outcome(results, found)

    def _give_back_unused(
        self, leases: Mapping[int, Lease], transactions: Sequence[Transaction], outcome: Outcome
    ) -> None:
        if not leases:
            return
        used = times_to_live(
            transaction
            for transaction, result in zip(transactions, outcome.results, strict=True)
            if isinstance(result, str)
        )
        self._leases.give_back(lease for ttl, lease in leases.items() if ttl not in used)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _write(transaction: Transaction, etag: str, found: dict[Slot, str | None]) -> str:
    """Note in `found` what a transaction has written; the etag that it gave."""
    given = ""
    for slot, value, _, _ in transaction.writes:
        if value is None:
            found[slot] = None
        else:
            found[slot] = given = etag
    return given


def _reason(transaction: Transaction, found: Mapping[Slot, str | None]) -> ETagMismatchError:
    """Why a transaction was refused."""
    for slot, expected in transaction.conditions:
        if slot in found and found[slot] != expected:
            return mismatch(slot, expected, found[slot])
    (partition, key), expected = transaction.conditions[0]
    wanted = "to be absent" if expected is None else f"etag {expected}"
    return ETagMismatchError(
        f"key {key!r} in partition {partition!r}, expected {wanted}, or another key of the same transaction"
        " is not as expected; which one could not be read",
        partition=partition,
        key=key,
    )
