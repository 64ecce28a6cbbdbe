"""Accepted events as they are read again: whole, or damaged, which must not hold up those behind them."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from hsm.fsm.store import AcceptedEvent
from persistence.proto.statemachine_pb2 import Event, EventRequest

__all__ = ["accepted_event"]


def accepted_event(stored: bytes, *, name: str, id_: str, event_id: str, position: str) -> AcceptedEvent:
    """The event that was accepted for a machine under an id, from what is stored of it."""
    try:
        request = EventRequest.FromString(stored)
    except DecodeError:
        request = EventRequest()
    place = (name, id_, event_id)
    # Bytes that were cut short, or to nothing, may still be a message.
    if (request.config, request.id, request.event.event_id) == place and request.event.transition.event:
        return AcceptedEvent(request, position)
    known = EventRequest(event=Event(event_id=event_id), config=name, id=id_)
    return AcceptedEvent(known, position, damage=stored)
