"""The storage contract: an ordered key-value store with etags and conditional transactions in a partition.

A key is a pair (partition, key). A partition is the unit a backend can transact over; every request,
scan and watch names one. Both parts are text without NUL and without lone surrogates, and the key is not
empty. Semantics: Dapr state stores (components-contrib, 2020 to 2026), with one etag rule for all backends.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import attrs

__all__ = [
    "ABSENT",
    "Absent",
    "BulkGetResponse",
    "Change",
    "ChangeKind",
    "CheckRequest",
    "Concurrency",
    "Consistency",
    "DeleteOptions",
    "DeleteRequest",
    "EngineStore",
    "Feature",
    "GetOptions",
    "GetRequest",
    "GetResponse",
    "HasBulkValues",
    "HasDurability",
    "HasServerVersion",
    "Item",
    "KeysLikeRequest",
    "KeysLikeResponse",
    "KeysLikeStore",
    "Limits",
    "Metadata",
    "Operation",
    "OrderedStore",
    "PrefixDeleteStore",
    "RetryPattern",
    "RetryPolicy",
    "SetOptions",
    "SetRequest",
    "Store",
    "StoreT",
    "TransactionalStore",
    "WatchableStore",
]


class Feature(enum.Enum):
    """What a store can do beyond get, set and delete."""

    ETAG = "etag"
    TRANSACTIONAL = "transactional"
    TTL = "ttl"
    SCAN = "scan"
    WATCH = "watch"
    KEYS_LIKE = "keys-like"
    DELETE_WITH_PREFIX = "delete-with-prefix"


@attrs.frozen
class Limits:
    """What one request may hold.

    Attributes:
        operations: operations in one transaction.
        transaction_bytes: keys and values of one transaction together, in bytes.
        key_bytes: partition and key together, in bytes of UTF-8.
        value_bytes: one value, in bytes.
    """

    operations: int
    transaction_bytes: int
    key_bytes: int
    value_bytes: int


class Concurrency(enum.Enum):
    """Who wins when no etag is given. A given etag always decides by itself."""

    DEFAULT = ""
    FIRST_WRITE = "first-write"
    LAST_WRITE = "last-write"


class Consistency(enum.Enum):
    """Which replicas a request asks."""

    DEFAULT = ""
    EVENTUAL = "eventual"
    STRONG = "strong"


class RetryPattern(enum.Enum):
    """How the pause between tries grows."""

    DEFAULT = ""
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@attrs.frozen
class RetryPolicy:
    """How often and how fast to try again.

    Attributes:
        pattern: constant pauses (linear) or doubling ones (exponential).
        interval: the first pause.
        threshold: calls in all; 0 or less is exactly one.
    """

    pattern: RetryPattern = RetryPattern.DEFAULT
    interval: timedelta = timedelta()
    threshold: int = 0


@attrs.frozen
class GetOptions:
    """Options of a read."""

    consistency: Consistency = Consistency.DEFAULT


@attrs.frozen
class SetOptions:
    """Options of a write."""

    concurrency: Concurrency = Concurrency.DEFAULT
    consistency: Consistency = Consistency.DEFAULT
    retry_policy: RetryPolicy | None = None


@attrs.frozen
class DeleteOptions:
    """Options of a delete."""

    concurrency: Concurrency = Concurrency.DEFAULT
    consistency: Consistency = Consistency.DEFAULT
    retry_policy: RetryPolicy | None = None


class Absent(enum.Enum):
    """The type of `ABSENT`."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
"""In a `CheckRequest`: the key must not exist."""

_EMPTY: Final[Mapping[str, str]] = MappingProxyType({})
_GET_OPTIONS: Final = GetOptions()
_SET_OPTIONS: Final = SetOptions()
_DELETE_OPTIONS: Final = DeleteOptions()


@attrs.frozen(kw_only=True)
class GetRequest:
    """Read one key."""

    key: str
    partition: str = ""
    metadata: Mapping[str, str] = _EMPTY
    options: GetOptions = _GET_OPTIONS


@attrs.frozen(kw_only=True)
class SetRequest:
    """Write one key.

    Attributes:
        value: stored and read back as it is.
        etag: the etag the row must have; None or "" is no condition.
        metadata: `ttlInSeconds` (whole seconds; -1, 0 or absent: no expiry), `contentType`.
        options: without an etag, first-write refuses to overwrite.
    """

    key: str
    value: bytes
    partition: str = ""
    etag: str | None = None
    metadata: Mapping[str, str] = _EMPTY
    options: SetOptions = _SET_OPTIONS


@attrs.frozen(kw_only=True)
class DeleteRequest:
    """Delete one key; deleting an absent key without an etag is not an error."""

    key: str
    partition: str = ""
    etag: str | None = None
    metadata: Mapping[str, str] = _EMPTY
    options: DeleteOptions = _DELETE_OPTIONS


@attrs.frozen
class CheckRequest:
    """A condition without a write: the row has this etag, or is absent."""

    partition: str
    key: str
    etag: str | Absent


Operation: TypeAlias = SetRequest | DeleteRequest | CheckRequest


@attrs.frozen
class GetResponse:
    """What a read found: data and etag are None if the key is absent or expired.

    Attributes:
        metadata: `ttlExpireTime` (RFC 3339, UTC) if the key expires.
    """

    data: bytes | None = None
    etag: str | None = None
    metadata: Mapping[str, str] = _EMPTY
    content_type: str | None = None


@attrs.frozen
class BulkGetResponse:
    """One entry of a bulk read: as `GetResponse`, or the error that this key met."""

    key: str
    partition: str = ""
    data: bytes | None = None
    etag: str | None = None
    metadata: Mapping[str, str] = _EMPTY
    content_type: str | None = None
    error: Exception | None = None


@attrs.frozen
class Item:
    """One row of a scan."""

    key: str
    value: bytes
    etag: str


class ChangeKind(enum.Enum):
    """What a watcher learns."""

    KEY = "key"
    RESYNC = "resync"


@attrs.frozen
class Change:
    """A key that may have changed, or the news that changes may have been missed (`RESYNC`, key "")."""

    kind: ChangeKind
    key: str = ""


@attrs.frozen(kw_only=True)
class KeysLikeRequest:
    r"""List keys by SQL LIKE pattern: `%` any text, `_` one character, `\` escapes.

    Attributes:
        page_size: keys a page; None is all.
        continue_token: from the page before.
    """

    pattern: str
    partition: str = ""
    page_size: int | None = None
    continue_token: str | None = None


@attrs.frozen
class KeysLikeResponse:
    """A page of keys, and the token of the next one if there is more."""

    keys: tuple[str, ...]
    continue_token: str | None = None


@attrs.frozen
class Metadata:
    """What `Store.init` is given: the component's properties, by name, as text."""

    properties: Mapping[str, str] = _EMPTY


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
