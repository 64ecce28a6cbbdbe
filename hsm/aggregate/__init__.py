"""Event-sourced aggregates: told by commands, moved on by events, kept in a journal."""

from hsm.aggregate.behavior import (
    Advancer,
    Behavior,
    Command,
    Event,
    FunctionAdvancer,
    HasHistoryType,
    Repeatable,
    Snapshotting,
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
    NotCherryPickableError,
    SagaConflictError,
    UnknownEventTypeError,
)
from hsm.aggregate.options import AggregateOptions, UnknownEvents
from hsm.aggregate.recording import EXECUTION_CHANGED, ExecutionRecorder, history_of, recorded_tree
from hsm.aggregate.sagas import Saga, Sagas
from hsm.aggregate.tree import CherryPicked, EventDefinition, EventDefinitions, FactDefinition

__all__ = [
    "EXECUTION_CHANGED",
    "Advancer",
    "AggregateError",
    "AggregateOptions",
    "Behavior",
    "CherryPicked",
    "Command",
    "Counts",
    "Engine",
    "Event",
    "EventCodec",
    "EventDefinition",
    "EventDefinitions",
    "EventRegistrationError",
    "ExecutionRecorder",
    "FactDefinition",
    "FunctionAdvancer",
    "HasHistoryType",
    "InvalidDeleteBehaviorError",
    "InvalidEventTypeError",
    "MissingUpcasterError",
    "NamedEvents",
    "NotCherryPickableError",
    "Repeatable",
    "Saga",
    "SagaConflictError",
    "Sagas",
    "Snapshotting",
    "State",
    "UnknownEventTypeError",
    "UnknownEvents",
    "Upcaster",
    "history_of",
    "recorded_tree",
]
