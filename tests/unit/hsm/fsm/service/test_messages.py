"""Messages: Base64 of protobuf, and nothing else."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from hsm.fsm.service import PoisonError, decode_request, decode_response, encode_request, encode_response
from persistence.proto.statemachine_pb2 import EventOutcome, EventResponse
from tests.support.fsm.service import event_for

SENT = datetime(2024, 5, 17, tzinfo=UTC)


def test_a_request_is_what_it_was() -> None:
    request = event_for("o1", "pay", event_id="e1", expected_revision=3, namespace="acme")
    request.event.timestamp.FromDatetime(SENT)

    assert decode_request(encode_request(request), event_id="other", sent=datetime.now(UTC)) == request


def test_a_response_is_what_it_was() -> None:
    response = EventResponse(event_id="e1", outcome=EventOutcome(code=EventOutcome.FsmNotFound, id="o1"))

    assert decode_response(encode_response(response)) == response


def test_line_break_at_the_end_is_left_out() -> None:
    body = encode_request(event_for("o1", "pay")) + "\n"

    assert decode_request(body, event_id="e", sent=SENT).event.event_id == "e"


@pytest.mark.parametrize("body", [None, "", "config: 'orders'", "AAAA", "====", "żółć"])
def test_what_is_no_request_is_poison(body: str | None) -> None:
    with pytest.raises(PoisonError):
        decode_request(body, event_id="e", sent=SENT)


@given(st.text() | st.binary().map(lambda raw: base64.b64encode(raw).decode()))
def test_any_body_is_a_request_or_poison(body: str) -> None:
    try:
        request = decode_request(body, event_id="e", sent=SENT)
    except PoisonError as error:
        assert str(error)  # noqa: PT017 - there is one in most cases, and not in all
    else:
        assert request.event.transition.event
