"""The durable runtime: executions on a store, with their queues and timers."""

from hsm.engine._child_definition import register_child_executions
from hsm.engine._children import (
    CHILD_EXECUTION,
    ChildExecution,
    ChildInfo,
    ChildObserver,
    Children,
    ChildState,
    ClosePolicy,
    HasExecutionResult,
    Startable,
)
from hsm.engine._closing import Cancellable
from hsm.engine.breaker import Breaker, BreakerState
from hsm.engine.calls import Call, Method, MethodDeclaration, method
from hsm.engine.clock import Clock, SystemClock, TimerHandle
from hsm.engine.cluster import Cluster
from hsm.engine.deadlines import DeadlineQueue
from hsm.engine.engine import Engine
from hsm.engine.environment import environment_as
from hsm.engine.info import (
    DeadLetter,
    ExecutionInfo,
    ExecutionPage,
    ExecutionTree,
    HistoryEntry,
    NodeInfo,
    PendingTask,
    QueueInfo,
)
from hsm.engine.options import Backoff, EngineOptions
from hsm.engine.policies import ConflictPolicy, ReusePolicy
from hsm.engine.rates import Rate
from hsm.engine.replication import Replicator
from hsm.engine.search import Between, HasSearchAttributes, SearchValue
from hsm.engine.sync import SyncEngine, SyncEnvironment, SyncExecutor, in_thread
from hsm.engine.telemetry import (
    CommitInfo,
    Gauges,
    Outcome,
    RunObserver,
    TaskRun,
    Telemetry,
    TraceContext,
    current_trace,
)

__all__ = [
    "CHILD_EXECUTION",
    "Backoff",
    "Between",
    "Breaker",
    "BreakerState",
    "Call",
    "Cancellable",
    "ChildExecution",
    "ChildInfo",
    "ChildObserver",
    "ChildState",
    "Children",
    "Clock",
    "ClosePolicy",
    "Cluster",
    "CommitInfo",
    "ConflictPolicy",
    "DeadLetter",
    "DeadlineQueue",
    "Engine",
    "EngineOptions",
    "ExecutionInfo",
    "ExecutionPage",
    "ExecutionTree",
    "Gauges",
    "HasExecutionResult",
    "HasSearchAttributes",
    "HistoryEntry",
    "Method",
    "MethodDeclaration",
    "NodeInfo",
    "Outcome",
    "PendingTask",
    "QueueInfo",
    "Rate",
    "Replicator",
    "ReusePolicy",
    "RunObserver",
    "SearchValue",
    "Startable",
    "SyncEngine",
    "SyncEnvironment",
    "SyncExecutor",
    "SystemClock",
    "TaskRun",
    "Telemetry",
    "TimerHandle",
    "TraceContext",
    "current_trace",
    "environment_as",
    "in_thread",
    "method",
    "register_child_executions",
]
