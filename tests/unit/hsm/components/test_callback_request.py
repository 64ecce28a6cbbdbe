"""Requests are checked before they are stored."""

from __future__ import annotations

from datetime import timedelta

import pytest

from hsm.components.callback import InvalidRequestError, Request, destination_of


@pytest.mark.parametrize(
    ("url", "destination"),
    [
        ("http://example.org/a?b#c", "http://example.org"),
        ("HTTPS://Example.ORG:443", "https://example.org"),
        ("https://example.org:80/", "https://example.org:80"),
        ("http://user:secret@example.org:8080/x", "http://example.org:8080"),
        ("http://[2001:DB8::1]:81/", "http://[2001:db8::1]:81"),
        ("http://bücher.example/", "http://bücher.example"),
    ],
)
def test_destination_is_scheme_host_and_unusual_port(url: str, destination: str) -> None:
    assert destination_of(url) == destination


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "does not begin with http"),
        ("example.org/hook", "does not begin with http"),
        ("ftp://example.org", "does not begin with http"),
        ("http://", "names no host"),
        ("http:///path", "names no host"),
        ("http://example.org:port/", "malformed"),
        ("http://example.org:99999/", "malformed"),
        ("http://example.org:0/", "port 0"),
        ("http://[::1/", "malformed"),
        ("http://example.org/a b", "blank or a control character"),
        ("http://example.org/\r\nHost: other", "blank or a control character"),
        ("http://exa\ud800mple.org/", "blank or a control character"),
        ("http://" + "ü" * 70 + ".org/", "malformed"),
    ],
)
def test_bad_url_is_named(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        Request(url)


@pytest.mark.parametrize("method", ["", "GE T", "GET\r\n", "connect", "GÄT"])
def test_bad_method_is_refused(method: str) -> None:
    with pytest.raises(InvalidRequestError):
        Request("http://example.org", method)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X A": "b"}, "no name of an HTTP header"),
        ({"": "b"}, "no name of an HTTP header"),
        ({"X-A": "b\r\nX-B: c"}, "control character"),
        ({"X-A": "1", "x-a": "2"}, "given twice"),
        ({"Content-Length": "5"}, "set by the sender"),
        ({"transfer-encoding": "chunked"}, "set by the sender"),
    ],
)
def test_bad_header_is_named(headers: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        Request("http://example.org", headers=headers)


@pytest.mark.parametrize("seconds", [0, -1, 3601])
def test_timeout_out_of_range_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidRequestError, match=str(seconds)):
        Request("http://example.org", timeout=timedelta(seconds=seconds))
