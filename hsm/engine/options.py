"""Options of the engine, with their defaults."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import attrs

from hsm.engine.clock import Clock, SystemClock

__all__ = ["Backoff", "EngineOptions"]


@attrs.frozen
class Backoff:
    """Growing pauses: `initial`, times `factor` each time, never over `maximum`; less up to `jitter` of it.

    Attributes:
        initial: the first pause.
        maximum: the longest pause.
        factor: growth from one pause to the next.
        jitter: the part of a pause that chance may take away, 0 to 1.
    """

    initial: timedelta = timedelta(seconds=1)
    maximum: timedelta = timedelta(minutes=3)
    factor: float = 2.0
    jitter: float = 0.2

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
    """How an engine works. Every value can be left as it is.

    Attributes:
        clock: where time comes from.
        random: makes ids and jitter; a seeded one makes a run repeatable.
        create: whether a database that no engine has used yet is set up; else it cannot be opened.
        shard_count: partitions that a new database is divided into; an existing one keeps its own.
        backoff: pauses between the attempts of a task.
        max_attempts: attempts of a task that fails for no known reason, before it is dead-lettered.
        task_timeout: how long an executor may take, unless its task type says otherwise.
        concurrency: tasks at once in one queue (namespace, group, destination).
        concurrency_of: the same for a queue by (namespace, group, destination), over `concurrency`.
        queue_buffer: waiting tasks that one queue holds in memory; the others stay in the store.
        timer_window: timers that are read ahead from each shard.
        poll_interval: how soon tasks are seen that another process has written.
        lease_seconds: how long a process keeps its shards without a sign of life, at least 2; it gives one
            every third of that time.
        cached_executions: trees kept in memory.
        loaded_nodes: rows of a tree that are read at once; a larger tree is loaded in parts.
        delete_rows: rows that a commit deletes itself; larger subtrees are swept afterwards.
        drain_timeout: how long running tasks may take to end when the engine closes.
    """

    clock: Clock = attrs.field(factory=SystemClock)
    random: random.Random = attrs.field(factory=random.Random)
    create: bool = True
    shard_count: int = 4
    backoff: Backoff = Backoff()
    max_attempts: int = 70
    task_timeout: timedelta | None = timedelta(seconds=60)
    concurrency: int = 100
    concurrency_of: Callable[[str, str, str], int | None] = lambda _namespace, _group, _destination: None
    queue_buffer: int = 1000
    timer_window: int = 1000
    poll_interval: timedelta = timedelta(milliseconds=500)
    lease_seconds: int = attrs.field(default=6, validator=attrs.validators.ge(2))
    cached_executions: int = 10_000
    loaded_nodes: int = 128
    delete_rows: int = 100
    drain_timeout: timedelta = timedelta(seconds=30)
