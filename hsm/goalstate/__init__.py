"""The goal-state engine: entities that know their state and their goal are brought from one to the other."""

from hsm.engine.deadlines import DeadlineQueue
from hsm.goalstate.engine import DeadEntity, Engine
from hsm.goalstate.entity import Action, ActionList, AnyEntity, Entity, Run, Standing
from hsm.goalstate.errors import (
    ClaimLostError,
    EntityNotFoundError,
    InvalidTableError,
    UnreachableGoalError,
)
from hsm.goalstate.metrics import Gauges, Metrics
from hsm.goalstate.options import DurableOptions, Growth, Options, Priority

__all__ = [
    "Action",
    "ActionList",
    "AnyEntity",
    "ClaimLostError",
    "DeadEntity",
    "DeadlineQueue",
    "DurableOptions",
    "Engine",
    "Entity",
    "EntityNotFoundError",
    "Gauges",
    "Growth",
    "InvalidTableError",
    "Metrics",
    "Options",
    "Priority",
    "Run",
    "Standing",
    "UnreachableGoalError",
]
