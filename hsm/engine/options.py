"""Options of the engine, with their defaults."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import attrs

from hsm.engine.breaker import Breaker
from hsm.engine.clock import Clock, SystemClock
from hsm.engine.cluster import Cluster
from hsm.engine.rates import Rate
from hsm.engine.telemetry import Telemetry
from hsm.task import Task

__all__ = ["Backoff", "EngineOptions"]

_BREAKER: Final = Breaker()
_AT_LEAST_ONE: Final = attrs.validators.ge(1)
_TASK_TIMEOUT: Final[timedelta | None] = timedelta(seconds=60)
_SOME_TIME: Final = attrs.validators.gt(timedelta())


@attrs.frozen
class Backoff:
    """Growing pauses: `initial`, times `factor` each time, never over `maximum`; less up to `jitter` of it.

    Attributes:
        initial: the first pause.
        maximum: the longest pause.
        factor: growth from one pause to the next.
        jitter: the part of a pause that chance may take away, 0 to 1.
    """

    initial: timedelta = attrs.field(default=timedelta(seconds=1), validator=attrs.validators.ge(timedelta()))
    maximum: timedelta = attrs.field(default=timedelta(minutes=3), validator=attrs.validators.ge(timedelta()))
    factor: float = attrs.field(default=2.0, validator=attrs.validators.ge(1))
    jitter: float = attrs.field(default=0.2, validator=[attrs.validators.ge(0), attrs.validators.le(1)])

    def delay(self, attempt: int, chance: random.Random) -> timedelta:
        """The pause after attempt number `attempt`, from 1."""
        longest = self.maximum / self.initial if self.initial else 1.0
        try:
            growth = min(self.factor ** max(attempt - 1, 0), longest)
        except OverflowError:
            growth = longest
        return self.initial * growth * (1 - self.jitter * chance.random())


@attrs.frozen(kw_only=True)
class EngineOptions:
    """How an engine works. Every value can be left as it is; one with which nothing would work is refused.

    The functions `..._of` are asked again at every poll, so that what they say can change while the engine
    runs; None is to do as the option without `_of` says, and so is an exception, which is logged.

    Attributes:
        clock: where time comes from.
        random: makes ids and jitter. A seeded one makes a run repeatable; two engines on one database must
            not have the same seed, as they would make the same ids.
        create: whether a database that no engine has used yet is set up; else it cannot be opened.
        shard_count: partitions that a new database is divided into; an existing one keeps its own.
        backoff: pauses between the attempts of a task.
        backoff_of: the same for a task and the error that it met, over `backoff`.
        max_attempts: attempts of a task that fails for no known reason, before it is dead-lettered.
        task_timeout: how long an executor may take, unless its task type says otherwise.
        concurrency: tasks at once in one queue (namespace, group, destination).
        concurrency_of: the same for a queue by (namespace, group, destination), over `concurrency`.
        rate: how often tasks of one queue are started; None is no limit.
        rate_of: the same for a queue by (namespace, group, destination), over `rate`.
        breaker: the circuit breaker of each destination's queue; None is none.
        breaker_of: the same for a queue by (namespace, group, destination), over `breaker`.
        queue_buffer: tasks of one queue that are held in memory because they could run, and as many again
            that wait for their next try; the others stay in the store.
        timer_window: timers that are read ahead from each shard.
        poll_interval: how soon tasks are seen that another process has written.
        lease_seconds: how long a process keeps its shards without a sign of life, at least 2; it gives one
            every third of that time.
        repair_shards: whether lost queue rows are looked for (`Engine.repair`) in each shard that a process
            takes over, which reads all its machines.
        repair_loaded: whether lost queue rows are looked for when an execution is read by the process that
            runs its shard: once for each, as long as all timers of the shard are in memory.
        cached_executions: trees kept in memory.
        loaded_nodes: rows of a tree that are read at once; a larger tree is loaded in parts.
        delete_rows: rows that a commit deletes itself; larger subtrees are swept afterwards.
        remembered_requests: requests with an id that each execution remembers, and the results of those that
            are calls: whoever asks again later is taken for somebody new. All commits of the execution write
            the ids.
        retention: how long executions are kept that have closed, to the minute or the poll; None is for ever.
        drain_timeout: how long running tasks may take to end when the engine closes.
        cluster: which of several databases this is that hold the same executions; None is the only one.
        telemetry: hears of commits and runs of tasks; None costs nothing.
    """

    clock: Clock = attrs.field(factory=SystemClock)
    # Whoever is forked must not make the ids of his siblings.
    random: random.Random = attrs.field(factory=random.SystemRandom)
    create: bool = True
    shard_count: int = attrs.field(default=4, validator=_AT_LEAST_ONE)
    backoff: Backoff = Backoff()
    backoff_of: Callable[[Task, Exception], Backoff | None] = lambda _task, _error: None
    max_attempts: int = attrs.field(default=70, validator=_AT_LEAST_ONE)
    task_timeout: timedelta | None = attrs.field(
        default=_TASK_TIMEOUT, validator=attrs.validators.optional(_SOME_TIME)
    )
    concurrency: int = attrs.field(default=100, validator=_AT_LEAST_ONE)
    concurrency_of: Callable[[str, str, str], int | None] = lambda _namespace, _group, _destination: None
    rate: Rate | None = None
    rate_of: Callable[[str, str, str], Rate | None] = lambda _namespace, _group, _destination: None
    breaker: Breaker | None = _BREAKER
    breaker_of: Callable[[str, str, str], Breaker | None] = lambda _namespace, _group, _destination: None
    queue_buffer: int = attrs.field(default=1000, validator=_AT_LEAST_ONE)
    timer_window: int = attrs.field(default=1000, validator=_AT_LEAST_ONE)
    poll_interval: timedelta = attrs.field(default=timedelta(milliseconds=500), validator=_SOME_TIME)
    lease_seconds: int = attrs.field(default=6, validator=attrs.validators.ge(2))
    repair_shards: bool = False
    repair_loaded: bool = True
    cached_executions: int = attrs.field(default=10_000, validator=attrs.validators.ge(0))
    loaded_nodes: int = attrs.field(default=128, validator=_AT_LEAST_ONE)
    delete_rows: int = attrs.field(default=100, validator=attrs.validators.ge(0))
    remembered_requests: int = attrs.field(default=32, validator=_AT_LEAST_ONE)
    retention: timedelta | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(timedelta()))
    )
    drain_timeout: timedelta = attrs.field(
        default=timedelta(seconds=30), validator=attrs.validators.ge(timedelta())
    )
    cluster: Cluster | None = None
    telemetry: Telemetry | None = None
