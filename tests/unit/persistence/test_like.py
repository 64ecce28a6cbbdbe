from __future__ import annotations

import sqlite3
import time

import pytest
from hypothesis import given, strategies as st

from persistence import InvalidRequestError, KeysLikeEmptyPatternError
from persistence.like import decode_token, encode_token, parse_like

ALPHABET = "ab%_\\*?[].^\u00e4\U0001f600\n"


def matches_by_definition(pattern: tuple[str | None, ...], text: str) -> bool:
    if not pattern:
        return not text
    first, rest = pattern[0], pattern[1:]
    if first is None:
        return any(matches_by_definition(rest, text[start:]) for start in range(len(text) + 1))
    return bool(text) and first in {"", text[0]} and matches_by_definition(rest, text[1:])


PATTERNS = st.text(ALPHABET, min_size=1, max_size=8).filter(
    lambda text: not text.replace("\\\\", "").endswith("\\")
)


@given(PATTERNS, st.text(ALPHABET, max_size=8))
def test_all_forms_of_a_pattern_agree(pattern: str, text: str) -> None:
    parsed = parse_like(pattern)
    expected = matches_by_definition(parsed.parts, text)
    assert parsed.matcher()(text) == expected
    with_glob = sqlite3.connect(":memory:")
    try:
        assert with_glob.execute("SELECT ? GLOB ?", (text, parsed.glob())).fetchone() == (int(expected),)
    finally:
        with_glob.close()
    assert not expected or text.startswith(parsed.prefix)


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [("abc%", "abc"), ("a_c", "a"), ("%a", ""), (r"a\%b%", "a%b"), ("abc", "abc")],
)
def test_literal_prefix(pattern: str, prefix: str) -> None:
    assert parse_like(pattern).prefix == prefix


def test_empty_pattern_is_refused() -> None:
    with pytest.raises(KeysLikeEmptyPatternError):
        parse_like("")


@pytest.mark.parametrize("pattern", ["a\\", "\\", "\\\\\\", "a\0", "\ud800"])
def test_bad_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_like(pattern)


def test_many_wildcards_do_not_explode() -> None:
    matches = parse_like("%a" * 30 + "%b").matcher()
    start = time.process_time()
    assert not matches("a" * 2000)
    # Backtracking would take longer than the universe is old, so any bound tells the two apart.
    assert time.process_time() - start < 60


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))
def test_tokens_come_back(key: str) -> None:
    assert decode_token(encode_token(key)) == key


@pytest.mark.parametrize("token", ["!", "a", "_w==", "\u00e4", "AA=="])
def test_bad_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequestError, match="token"):
        decode_token(token)
