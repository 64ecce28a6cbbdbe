from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, strategies as st

from persistence import (
    Concurrency,
    DeleteOptions,
    DeleteRequest,
    ETagInvalidError,
    InvalidRequestError,
    RetryPattern,
    RetryPolicy,
    SetOptions,
    SetRequest,
    check_delete_request_options,
    check_set_request_options,
    parse_ttl,
    prefix_end,
)
from persistence.options import check_etag, check_key, check_prefix

TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


@pytest.mark.parametrize("options", [SetOptions(), SetOptions(concurrency=Concurrency.FIRST_WRITE)])
def test_known_set_options_pass(options: SetOptions) -> None:
    check_set_request_options(SetRequest(key="key", value=b"", options=options))


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": "first-write"},
        {"consistency": "strong"},
        {"retry_policy": RetryPolicy(pattern=cast("RetryPattern", "linear"))},
    ],
)
def test_options_that_are_not_of_the_enumerations_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="unrecognized"):
        check_set_request_options(SetRequest(key="key", value=b"", options=SetOptions(**options)))
    with pytest.raises(InvalidRequestError, match="unrecognized"):
        check_delete_request_options(DeleteRequest(key="key", options=DeleteOptions(**options)))


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1), ("0", None), ("-1", None), ("2147483647", 2**31 - 1)]
)
def test_time_to_live(text: str, seconds: int | None) -> None:
    assert parse_ttl({"ttlInSeconds": text}) == seconds


def test_no_time_to_live_is_no_expiry() -> None:
    assert parse_ttl({}) is None


@pytest.mark.parametrize(
    "text", ["", "x", "-2", "2147483648", "1.0", "+1", " 1", "1_0", "\u0663", "9" * 5000]
)
def test_bad_time_to_live_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="ttlInSeconds"):
        parse_ttl({"ttlInSeconds": text})


def test_size_of_a_key_is_bytes_of_utf8_with_its_partition() -> None:
    assert check_key("p", "\u00e4\U0001f600") == 1 + 2 + 4


@pytest.mark.parametrize("text", ["\0", "a\0", "\ud800", "a\udfff"])
def test_text_that_databases_cannot_keep_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="key"):
        check_key("", text)
    with pytest.raises(InvalidRequestError, match="partition"):
        check_key(text, "key")


def test_empty_key_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty key in partition 'p'"):
        check_key("p", "")


@pytest.mark.parametrize(
    "etag", ["0" * 15, "0" * 17, "ABCDEF0123456789", "g" * 16, "\uff10" * 16, "0" * 16 + "\n"]
)
def test_text_that_is_no_etag_is_invalid(etag: str) -> None:
    with pytest.raises(ETagInvalidError) as refused:
        check_etag("p", "k", etag)
    assert (refused.value.partition, refused.value.key) == ("p", "k")


@pytest.mark.parametrize("prefix", ["", "||"])
def test_empty_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidRequestError, match="prefix is required"):
        check_prefix(prefix)


def test_prefix_gets_its_separator_once() -> None:
    assert check_prefix("a") == check_prefix("a||") == "a||"


@given(TEXTS, TEXTS)
def test_prefix_end_separates_keys_with_the_prefix_from_others(prefix: str, text: str) -> None:
    end = prefix_end(prefix)
    assert (prefix <= text and (text < end or not end)) == text.startswith(prefix)


def test_prefix_end_skips_surrogates() -> None:
    assert prefix_end("a\ud7ff") == "a\ue000"
    assert prefix_end("a\U0010ffff") == "b"
    assert not prefix_end("\U0010ffff")
