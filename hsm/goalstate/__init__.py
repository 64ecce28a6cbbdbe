"""The goal-state engine: entities that know their state and their goal are brought from one to the other."""

from hsm.engine.deadlines import DeadlineQueue
from hsm.goalstate.durable import DurableEngine, EntityInfo
from hsm.goalstate.engine import DeadEntity, Engine
from hsm.goalstate.entity import Action, ActionList, AnyEntity, Entity, Run, Standing
from hsm.goalstate.errors import (
    ClaimLostError,
    EntityNotFoundError,
    InvalidTableError,
    UnreachableGoalError,
)
from hsm.goalstate.kinds import EntityKind
from hsm.goalstate.metrics import Gauges, Metrics
from hsm.goalstate.nodes import NodeDriver, NodeEntity, node_id, node_ref
from hsm.goalstate.options import DurableOptions, Growth, Options, Priority
from hsm.goalstate.planner import Planner, Step, plan_actions
from hsm.goalstate.table import ActionTable, Rule, when

__all__ = [
    "Action",
    "ActionList",
    "ActionTable",
    "AnyEntity",
    "ClaimLostError",
    "DeadEntity",
    "DeadlineQueue",
    "DurableEngine",
    "DurableOptions",
    "Engine",
    "Entity",
    "EntityInfo",
    "EntityKind",
    "EntityNotFoundError",
    "Gauges",
    "Growth",
    "InvalidTableError",
    "Metrics",
    "NodeDriver",
    "NodeEntity",
    "Options",
    "Planner",
    "Priority",
    "Rule",
    "Run",
    "Standing",
    "Step",
    "UnreachableGoalError",
    "node_id",
    "node_ref",
    "plan_actions",
    "when",
]
