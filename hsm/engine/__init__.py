"""The durable runtime: executions on a store, with their queues and timers."""

from hsm.engine._closing import Cancellable
from hsm.engine.breaker import Breaker, BreakerState
from hsm.engine.clock import Clock, SystemClock, TimerHandle
from hsm.engine.deadlines import DeadlineQueue
from hsm.engine.engine import Engine
from hsm.engine.info import DeadLetter, ExecutionInfo, ExecutionTree, NodeInfo, PendingTask, QueueInfo
from hsm.engine.options import Backoff, EngineOptions
from hsm.engine.policies import ConflictPolicy, ReusePolicy
from hsm.engine.rates import Rate

__all__ = [
    "Backoff",
    "Breaker",
    "BreakerState",
    "Cancellable",
    "Clock",
    "ConflictPolicy",
    "DeadLetter",
    "DeadlineQueue",
    "Engine",
    "EngineOptions",
    "ExecutionInfo",
    "ExecutionTree",
    "NodeInfo",
    "PendingTask",
    "QueueInfo",
    "Rate",
    "ReusePolicy",
    "SystemClock",
    "TimerHandle",
]
