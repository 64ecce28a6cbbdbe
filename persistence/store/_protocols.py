"""What a store can do: one protocol for what every backend has, and one for each thing that some have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar, runtime_checkable

from persistence.store._requests import (
    BulkGetResponse,
    Change,
    DeleteRequest,
    Feature,
    GetRequest,
    GetResponse,
    Item,
    KeysLikeRequest,
    KeysLikeResponse,
    Limits,
    Metadata,
    Operation,
    SetRequest,
)

__all__ = [
    "EngineStore",
    "HasBulkValues",
    "HasDurability",
    "HasServerVersion",
    "KeysLikeStore",
    "OrderedStore",
    "PrefixDeleteStore",
    "Store",
    "StoreT",
    "TransactionalStore",
    "WatchableStore",
]


@runtime_checkable
class Store(Protocol):
    """The part of the contract that every backend has. `async with store` calls `init` and `aclose`."""

    @property
    def features(self) -> frozenset[Feature]:
        """What this store can do; a property of the instance."""
        ...

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        ...

    async def init(self, metadata: Metadata) -> None:
        """Open the store; a second call does nothing."""
        ...

    async def get(self, request: GetRequest) -> GetResponse:
        """Read one key; absent is an empty response, not an error."""
        ...

    async def set(self, request: SetRequest) -> None:
        """Write one key.

        Raises:
            ETagMismatchError: the condition does not hold.
        """
        ...

    async def delete(self, request: DeleteRequest) -> None:
        """Delete one key.

        Raises:
            ETagMismatchError: the condition does not hold.
        """
        ...

    async def bulk_get(
        self, requests: Sequence[GetRequest], *, parallelism: int = 0
    ) -> Sequence[BulkGetResponse]:
        """Read several keys, one entry a request, in order; at most `parallelism` at once (0: no bound)."""
        ...

    async def bulk_set(self, requests: Sequence[SetRequest], *, parallelism: int = 0) -> None:
        """Write several keys, each for itself.

        Raises:
            BulkError: lists the keys that failed; the others were written.
        """
        ...

    async def bulk_delete(self, requests: Sequence[DeleteRequest], *, parallelism: int = 0) -> None:
        """Delete several keys, each for itself.

        Raises:
            BulkError: lists the keys that failed; the others were deleted.
        """
        ...

    async def ping(self) -> None:
        """Return if the database answers."""
        ...

    async def aclose(self) -> None:
        """Finish what was accepted, and release everything; a second call does nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class TransactionalStore(Store, Protocol):
    """A store with all-or-nothing transactions within one partition."""

    async def multi(self, operations: Sequence[Operation]) -> str:
        """Carry out all operations or none; the etag of every row that was written.

        A writer that holds a row can thus write it again without reading it first. The answer is "" if
        nothing was written.

        All conditions see the state before the multi; then all writes happen in order. The operations
        are of one partition. An empty sequence does nothing.

        Raises:
            ETagMismatchError: a condition does not hold; names the key.
            TransactionTooLargeError: over `limits`.
            CommitOutcomeUnknownError: the connection broke while the commit was under way.
        """
        ...


@runtime_checkable
class OrderedStore(Store, Protocol):
    """A store whose keys can be read in code-point order."""

    def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        """Rows with start <= key < end in code-point order (`reverse`: from the end); "" is no bound.

        Expired rows are left out. Pages are read as needed; a long scan is not one snapshot.
        """
        ...


@runtime_checkable
class WatchableStore(Store, Protocol):
    """A store that tells of changes as they happen."""

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        """Keys with this prefix that may change from now on, at least once each; RESYNC after a reconnect.

        The iterator ends when the store is closed.
        """
        ...


@runtime_checkable
class KeysLikeStore(Store, Protocol):
    """A store that lists keys by pattern."""

    async def keys_like(self, request: KeysLikeRequest) -> KeysLikeResponse:
        """One page of the keys that match.

        Raises:
            KeysLikeEmptyPatternError: the pattern is empty.
        """
        ...


@runtime_checkable
class PrefixDeleteStore(Store, Protocol):
    """A store that deletes a family of keys."""

    async def delete_with_prefix(self, partition: str, prefix: str) -> int:
        """Delete the keys `prefix||name` whose name holds no further `||`; the number deleted.

        `||` is appended to the prefix where it is missing.

        Raises:
            InvalidRequestError: the prefix is empty.
        """
        ...


@runtime_checkable
class EngineStore(TransactionalStore, OrderedStore, Protocol):
    """What the engine needs of a store: ETAG, TRANSACTIONAL and SCAN."""


@runtime_checkable
class HasDurability(Protocol):
    """An open store that says what its database can lose; not every store does."""

    @property
    def durability(self) -> str:
        """What a crash of the database or of its machine can lose, as it is set up now; one sentence."""
        ...


@runtime_checkable
class HasServerVersion(Protocol):
    """An open store that says what it is connected to; not every store does."""

    @property
    def server_version(self) -> str:
        """Name and version of the database, for people: `PostgreSQL 17.2`."""
        ...


@runtime_checkable
class HasBulkValues(Protocol):
    """An open store that reads values, and nothing besides, faster than by `bulk_get`; not every store does.

    `persistence.bulk.bulk_values` takes whichever a store has.
    """

    async def bulk_values(self, partition: str, keys: Sequence[str]) -> Sequence[bytes | None]:
        """The values of keys of one partition, in order; None for what is absent or expired.

        Many of them are not one snapshot.

        Raises:
            PersistenceError: whatever one of them meets.
        """
        ...


StoreT = TypeVar("StoreT", bound=Store)
