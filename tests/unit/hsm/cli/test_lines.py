"""The deliveries file: what a line may hold, and what is told of one that may not be."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import pytest

from hsm.cli._errors import MalformedLineError, OversizedLineError
from hsm.cli._lines import LONGEST_LINE, Delivery, parse_line, read_lines
from hsm.components.callback import Request

URL = "http://example.org/hook"


def line(**members: Any) -> bytes:
    return json.dumps({"id": "a", "url": URL, **members}).encode()


def test_line_of_two_members_has_the_defaults() -> None:
    assert parse_line(3, line()) == Delivery(3, "a", Request(URL), 10)


def test_all_members() -> None:
    text = line(method="PUT", headers={"X-A": "b"}, body="text", max_attempts=2, timeout=0.5)
    headers = {"X-A": "b", "Content-Type": "text/plain; charset=utf-8"}
    request = Request(URL, "PUT", headers, b"text", timedelta(milliseconds=500))
    assert parse_line(1, text) == Delivery(1, "a", request, 2)


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"ü": [1, 2.5, None]}, '{"ü":[1,2.5,null]}'),
        ([], "[]"),
        (0, "0"),
        (False, "false"),
        (12**99, str(12**99)),
    ],
)
def test_other_json_is_sent_as_json(value: object, body: str) -> None:
    request = parse_line(1, line(body=value)).request
    assert (request.body, request.headers) == (body.encode(), {"Content-Type": "application/json"})


def test_content_type_of_the_line_wins() -> None:
    request = parse_line(1, line(body="<a/>", headers={"content-type": "text/xml"})).request
    assert request.headers == {"content-type": "text/xml"}


def test_no_body_has_no_content_type() -> None:
    assert parse_line(1, line(body=None)).request == Request(URL)


def test_digest_goes_by_the_content_and_not_by_the_spelling() -> None:
    plain = parse_line(1, line(headers={"A": "1", "B": "2"})).digest
    spelt = b'{"url":"%s", "method": "POST", "id":"\\u0061", "headers": {"B":"2","A":"1"}, "timeout": 10.0}'
    assert parse_line(7, spelt % URL.encode()).digest == plain
    for change in ({"body": ""}, {"body": "x"}, {"max_attempts": 3}, {"timeout": 1}, {"method": "PUT"}):
        changed = parse_line(1, line(headers={"A": "1", "B": "2"}, **change)).digest
        assert (changed == plain) is False


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"\xff{}", "not UTF-8"),
        (b'{"id": NaN}', "NaN"),
        (line()[:-1] + b', "id": "b"}', "the member 'id' is there twice"),
        (line()[:-1] + b', "headers": {"A": "1", "A": "1"}}', "the member 'A' is there twice"),
        (line()[:-1] + b', "body": [{"a": 1, "b": 2, "a": 1}]}', "the member 'a' is there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 10_000, "not JSON"),
        (b"{}", "'id' is missing"),
        (b'{"id": "a"}', "'url' is missing"),
        (line(id=1), "'id' is not text: 1"),
        (line(id=""), "'id' has 1 to"),
        (line(id="a" * 501), "'id' has 1 to"),
        (line(id="a\0b"), "'id' has 1 to"),
        (line(id="\ud800"), "'id' has 1 to"),
        (line(url="example.org"), "example.org"),
        (line(url=None), "'url' is missing"),
        (line(header={}), "unknown member 'header'"),
        (line(method="GE T"), "GE T"),
        (line(headers=[]), "'headers' is not an object"),
        (line(headers={"A": 1}), "header 'A' is not text"),
        (line(headers={"A": "\n"}), "header 'A'"),
        (line(max_attempts=0), "'max_attempts'"),
        (line(max_attempts=True), "'max_attempts'"),
        (line(max_attempts=1.5), "'max_attempts'"),
        (line(max_attempts=2**31), "'max_attempts'"),
        (line(timeout=0), "time-out"),
        (line(timeout=3601), "time-out"),
        (line(timeout=10**400), "'timeout' is too large"),
        (line(timeout="10"), "'timeout' is not a number"),
        (line(body="\ud800"), "surrogate"),
        (line(body=["\ud800"]), "surrogate"),
        (line()[:-1] + b', "body": [1e999]}', "'body' cannot be sent"),
    ],
)
def test_bad_line_is_told_with_its_number_and_member(text: bytes, reason: str) -> None:
    with pytest.raises(MalformedLineError, match=r"^line 42: ") as caught:
        parse_line(42, text)
    assert reason in str(caught.value)


def test_empty_lines_count_and_are_passed_over() -> None:
    found = list(read_lines(io.BytesIO(b"\n  \r\n" + line() + b"\r\n\n" + line(id="b"))))
    assert [(one.line, getattr(one, "id", None)) for one in found] == [(3, "a"), (5, "b")]


def test_byte_order_mark_is_no_part_of_the_first_line() -> None:
    (found,) = read_lines(io.BytesIO(b"\xef\xbb\xbf" + line()))
    assert isinstance(found, Delivery)


def test_line_of_the_longest_length_is_taken_and_a_longer_one_is_not() -> None:
    longest = line(body="x" * (LONGEST_LINE - len(line(body=""))))
    assert len(longest) == LONGEST_LINE
    too_long = longest[:-2] + b'x"}'
    far_too_long = longest[:-2] + b"x" * 3_000_000 + b'"}'
    file = io.BytesIO(b"\r\n".join([longest, too_long, far_too_long, line(id="last")]) + b"\n" + too_long)
    found = list(read_lines(file))
    assert [type(one) for one in found] == [
        Delivery,
        OversizedLineError,
        OversizedLineError,
        Delivery,
        OversizedLineError,
    ]
    assert [one.line for one in found] == [1, 2, 3, 4, 5]
