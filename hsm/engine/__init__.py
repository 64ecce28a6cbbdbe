"""The durable runtime: executions on a store, with their queues and timers."""

from hsm.engine.clock import Clock, SystemClock, TimerHandle
from hsm.engine.deadlines import DeadlineQueue
from hsm.engine.engine import Engine
from hsm.engine.info import DeadLetter, ExecutionInfo, ExecutionTree, NodeInfo, PendingTask
from hsm.engine.options import Backoff, EngineOptions

__all__ = [
    "Backoff",
    "Clock",
    "DeadLetter",
    "DeadlineQueue",
    "Engine",
    "EngineOptions",
    "ExecutionInfo",
    "ExecutionTree",
    "NodeInfo",
    "PendingTask",
    "SystemClock",
    "TimerHandle",
]
