from __future__ import annotations

import traceback
from datetime import timedelta

import pytest

from persistence import InvalidRequestError
from persistence.settings import Properties, host_and_port, split_url


def test_absent_options_have_their_defaults() -> None:
    with Properties("etcd", {}) as properties:
        assert properties.text("prefix", "hsm/") == "hsm/"
        assert properties.seconds("connect_timeout", timedelta(seconds=5)) == timedelta(seconds=5)
        assert properties.whole("lanes", 4) == 4
        assert properties.flag("create", True)
        assert properties.choice("mode", "a", frozenset("ab")) == "a"


def test_options_are_read_as_what_they_are() -> None:
    texts = {"prefix": "", "connect_timeout": "0.5", "lanes": "8", "create": "No", "mode": "b"}
    with Properties("etcd", texts) as properties:
        assert not properties.text("prefix", "hsm/")
        assert properties.seconds("connect_timeout", timedelta(seconds=5)) == timedelta(milliseconds=500)
        assert properties.whole("lanes", 4, least=1) == 8
        assert not properties.flag("create", True)
        assert properties.choice("mode", "a", frozenset("ab")) == "b"


@pytest.mark.parametrize("text", ["", "soon", "-1", "-0.1", "nan", "inf", "1e400", "1e15", "5s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"etcd option wait=.* is not a number of seconds"):
        Properties("etcd", {"wait": text}).seconds("wait", timedelta())


@pytest.mark.parametrize(
    "text", ["", "four", "-4", "4.0", "0", "\u0664", "\u00b2", "1" * 19, "1" * 5000, "1_0"]
)
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"etcd option lanes=.* is not a whole number of at least 1"
    ):
        Properties("etcd", {"lanes": text}).whole("lanes", 4, least=1)


@pytest.mark.parametrize("text", ["", "maybe", "2", " true"])
def test_what_is_neither_true_nor_false_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"etcd option create=.* is neither true nor false"):
        Properties("etcd", {"create": text}).flag("create", True)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("true", True), ("1", True), ("YES", True), ("False", False), ("0", False), ("no", False)],
)
def test_words_for_true_and_false(text: str, *, meant: bool) -> None:
    assert Properties("etcd", {"create": text}).flag("create", not meant) is meant


def test_a_word_that_is_no_choice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"etcd option mode='c' is not one of a, b"):
        Properties("etcd", {"mode": "c"}).choice("mode", "a", frozenset("ab"))


def test_an_option_that_nobody_asks_for_is_refused() -> None:
    def read() -> tuple[int, str]:
        with Properties("etcd", {"lains": "4", "lanes": "4"}) as properties:
            return properties.whole("lanes", 4), properties.text("prefix", "")

    with pytest.raises(InvalidRequestError, match="unknown etcd option 'lains'; known are lanes, prefix"):
        read()


def test_an_error_while_reading_is_not_hidden_by_unknown_options() -> None:
    with (
        pytest.raises(InvalidRequestError, match="lanes"),
        Properties("etcd", {"unknown": "", "lanes": "x"}) as properties,
    ):
        properties.whole("lanes", 4)


def test_a_number_of_connections_has_bounds() -> None:
    assert Properties("etcd", {"lanes": "10000"}).connections("lanes", 1) == 10_000
    for wrong in ("0", "10001", "999999999999999999", "9" * 5000):
        with pytest.raises(InvalidRequestError, match="lanes"):
            Properties("etcd", {"lanes": wrong}).connections("lanes", 1)


@pytest.mark.parametrize(
    ("host", "place"), [("host", "host:1"), ("127.0.0.1", "127.0.0.1:1"), ("::1", "[::1]:1")]
)
def test_an_address_with_colons_stands_in_brackets(host: str, place: str) -> None:
    assert host_and_port(host, 1) == place


def test_the_rest_is_somebody_elses() -> None:
    with Properties("postgresql", {"lanes": "4", "sslmode": "require"}) as properties:
        assert properties.whole("lanes", 1) == 4
        assert properties.rest() == {"sslmode": "require"}


def test_a_url_has_parts_and_options() -> None:
    parts, options = split_url("redis://me:p%40ss@host:1234/0?prefix=a%3Ab&create=false&empty=")
    assert (parts.scheme, parts.username, parts.password) == ("redis", "me", "p%40ss")
    assert (parts.hostname, parts.port, parts.path) == ("host", 1234, "/0")
    assert options == {"prefix": "a:b", "create": "false", "empty": ""}


def test_a_number_sign_does_not_end_a_url() -> None:
    parts, options = split_url("redis://host/0?prefix=a#b")
    assert (parts.fragment, options) == ("", {"prefix": "a#b"})


@pytest.mark.parametrize("url", ["redis://me:secret\ud800@host/0", "redis://host/0?prefix=\udfff"])
def test_lone_surrogates_in_a_url_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate") as refused:
        split_url(url)
    assert "secret" not in str(refused.value)


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"given twice: lanes$"):
        split_url("redis://host/0?lanes=1&prefix=a&lanes=1")


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:secret@host:port/0",
        "redis://me:secret@host:99999/0",
        "redis://me:se?cret@host/0",
        "redis://me:se/cret@host/0",
        "redis://me:?secret@host/0",
        "redis://me:1234?secret@host/0?lanes=1",
        "redis://[me:secret]@host/0",
        "redis://me:secret\u2100@host/0",
        "redis://me:secret@[::1/0",
        "redis://me:secret@host:0/0",
    ],
)
def test_what_is_no_url_is_refused_without_a_piece_of_the_password(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read") as refused:
        split_url(url)
    said = "".join(traceback.format_exception(refused.value)).partition("Error: ")[2]
    assert "se" + "cret" not in said
    assert "'se'" not in said
    assert "me:" not in said
