"""Event-sourced aggregates: told by commands, moved on by events, kept in a journal."""

from hsm.aggregate.behavior import (
    Advancer,
    Behavior,
    Command,
    Event,
    FunctionAdvancer,
    Repeatable,
    State,
)
from hsm.aggregate.codec import EventCodec, NamedEvents, Upcaster
from hsm.aggregate.engine import Counts, Engine
from hsm.aggregate.errors import (
    AggregateError,
    EventRegistrationError,
    InvalidDeleteBehaviorError,
    InvalidEventTypeError,
    MissingUpcasterError,
    SagaConflictError,
    UnknownEventTypeError,
)
from hsm.aggregate.options import AggregateOptions, UnknownEvents
from hsm.aggregate.sagas import Saga, Sagas

__all__ = [
    "Advancer",
    "AggregateError",
    "AggregateOptions",
    "Behavior",
    "Command",
    "Counts",
    "Engine",
    "Event",
    "EventCodec",
    "EventRegistrationError",
    "FunctionAdvancer",
    "InvalidDeleteBehaviorError",
    "InvalidEventTypeError",
    "MissingUpcasterError",
    "NamedEvents",
    "Repeatable",
    "Saga",
    "SagaConflictError",
    "Sagas",
    "State",
    "UnknownEventTypeError",
    "UnknownEvents",
    "Upcaster",
]
