"""Messages of queues and streams: Base64 of a protobuf message, in either direction."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

from google.protobuf.message import DecodeError

from hsm.fsm.service.errors import PoisonError
from persistence.proto.statemachine_pb2 import EventRequest, EventResponse

__all__ = ["decode_request", "decode_response", "encode_request", "encode_response"]


def encode_request(request: EventRequest) -> str:
    """The body of a message that asks for an event."""
    return base64.b64encode(request.SerializeToString()).decode()


def encode_response(response: EventResponse) -> str:
    """The body of a message that tells an outcome."""
    return base64.b64encode(response.SerializeToString()).decode()


def decode_request(body: str | None, *, event_id: str, sent: datetime) -> EventRequest:
    """What a message asks for.

    Args:
        body: of the message.
        event_id: the event's id if the message leaves it out. It has to be the same each time the message is
            delivered, or else the event takes place each time.
        sent: the event's time if the message leaves it out.

    Raises:
        PoisonError: the body is no request for an event that has a name.
    """
    request = EventRequest()
    _parse(request, body)
    if not request.HasField("event") or not request.event.HasField("transition"):
        raise PoisonError("the message has no event with a transition")
    if not request.event.transition.event:
        raise PoisonError("the event of the message has no name")
    if not request.event.event_id:
        request.event.event_id = event_id
    if not request.event.HasField("timestamp"):
        request.event.timestamp.FromDatetime(sent)
    return request


def decode_response(body: str | None) -> EventResponse:
    """What a message tells.

    Raises:
        PoisonError: the body is no outcome.
    """
    response = EventResponse()
    _parse(response, body)
    return response


def _parse(message: EventRequest | EventResponse, body: str | None) -> None:
    if not body:
        raise PoisonError("the message has no body")
    try:
        message.ParseFromString(base64.b64decode(body.strip(), validate=True))
    except (binascii.Error, ValueError) as error:
        raise PoisonError(f"the body of the message is no Base64: {error}") from error
    except DecodeError as error:
        raise PoisonError(f"the body of the message is no {message.DESCRIPTOR.name}: {error}") from error
