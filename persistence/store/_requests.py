"""What is asked of a store and what it answers: requests with their options, rows, changes, limits."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Final, TypeAlias

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
    "Feature",
    "GetOptions",
    "GetRequest",
    "GetResponse",
    "Item",
    "KeysLikeRequest",
    "KeysLikeResponse",
    "Limits",
    "Metadata",
    "Operation",
    "RetryPattern",
    "RetryPolicy",
    "SetOptions",
    "SetRequest",
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
