"""What a request may ask for: keys, options, etags and time to live, checked before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from persistence.errors import ETagInvalidError, InvalidRequestError
from persistence.store import (
    Concurrency,
    Consistency,
    DeleteRequest,
    RetryPattern,
    RetryPolicy,
    SetRequest,
)

__all__ = [
    "MAX_TTL_SECONDS",
    "check_delete_request_options",
    "check_etag",
    "check_key",
    "check_partition",
    "check_prefix",
    "check_set_request_options",
    "check_text",
    "parse_ttl",
    "prefix_end",
]

MAX_TTL_SECONDS: Final = 2**31 - 1
_SEPARATOR: Final = "||"
_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,10}", re.ASCII).fullmatch
_ETAG: Final = re.compile(r"[0-9a-f]{16}", re.ASCII).fullmatch
_LAST_CODE_POINT: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)


def check_text(text: str, what: str) -> int:
    """The size of `text` in bytes of UTF-8.

    Raises:
        InvalidRequestError: it holds NUL or a lone surrogate, which some databases cannot keep.
    """
    if "\0" in text:
        raise InvalidRequestError(f"{what} {text[:100]!r} holds a NUL character")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what} {text[:100]!r} holds a lone surrogate") from None


def check_partition(partition: str) -> int:
    """The size of a partition's name in bytes.

    Raises:
        InvalidRequestError: it holds NUL or a lone surrogate.
    """
    return check_text(partition, "partition")


def check_key(partition: str, key: str) -> int:
    """The size of partition and key together in bytes.

    Raises:
        InvalidRequestError: the key is empty, or one of them holds NUL or a lone surrogate.
    """
    if not key:
        raise InvalidRequestError(f"empty key in partition {partition[:100]!r}")
    return check_text(partition, "partition") + check_text(key, "key")


def check_etag(partition: str, key: str, etag: str) -> None:
    """Refuse an etag that no store of ours can have given out: it has 16 lower-case hexadecimal digits.

    Raises:
        ETagInvalidError: it does not.
    """
    if _ETAG(etag) is None:
        message = (
            f"etag {etag[:100]!r} of key {key!r} in partition {partition!r} is not 16 hexadecimal digits"
        )
        raise ETagInvalidError(message, partition=partition, key=key)


def check_set_request_options(request: SetRequest) -> None:
    """Refuse options that are not of the enumerations (a caller without a type checker can pass text).

    Raises:
        InvalidRequestError: names the option and its value.
    """
    options = request.options
    _check_options(options.concurrency, options.consistency, options.retry_policy)


def check_delete_request_options(request: DeleteRequest) -> None:
    """Refuse options that are not of the enumerations (a caller without a type checker can pass text).

    Raises:
        InvalidRequestError: names the option and its value.
    """
    options = request.options
    _check_options(options.concurrency, options.consistency, options.retry_policy)


def _check_options(concurrency: object, consistency: object, policy: RetryPolicy | None) -> None:
    if not isinstance(concurrency, Concurrency):
        raise InvalidRequestError(f"unrecognized concurrency {concurrency!r}")
    if not isinstance(consistency, Consistency):
        raise InvalidRequestError(f"unrecognized consistency {consistency!r}")
    if policy is not None:
        _check_pattern(policy.pattern)


def _check_pattern(pattern: object) -> None:
    if not isinstance(pattern, RetryPattern):
        raise InvalidRequestError(f"unrecognized retry pattern {pattern!r}")


def parse_ttl(metadata: Mapping[str, str]) -> int | None:
    """The time to live in seconds from `ttlInSeconds`; None is no expiry (absent, 0 or -1).

    Raises:
        InvalidRequestError: not a whole number, below -1 or above 2**31 - 1.
    """
    text = metadata.get("ttlInSeconds")
    if text is None:
        return None
    if _WHOLE_NUMBER(text) is None or not -1 <= (seconds := int(text)) <= MAX_TTL_SECONDS:
        raise InvalidRequestError(
            f"ttlInSeconds {text[:100]!r} is not a whole number from -1 to {MAX_TTL_SECONDS}"
        )
    return seconds if seconds > 0 else None


def check_prefix(prefix: str) -> str:
    """The prefix of a family of keys, with its `||` at the end.

    Raises:
        InvalidRequestError: the prefix is empty, or holds NUL or a lone surrogate.
    """
    check_text(prefix, "prefix")
    if prefix in {"", _SEPARATOR}:
        raise InvalidRequestError("prefix is required")
    return prefix if prefix.endswith(_SEPARATOR) else prefix + _SEPARATOR


def prefix_end(prefix: str) -> str:
    """The first text in code-point order after everything that starts with `prefix`; "" if there is none.

    A scan from `prefix` to `prefix_end(prefix)` reads the keys with that prefix.
    """
    kept = prefix.rstrip(chr(_LAST_CODE_POINT))
    if not kept:
        return ""
    following = ord(kept[-1]) + 1
    if following in _SURROGATES:
        following = _SURROGATES.stop
    return kept[:-1] + chr(following)
