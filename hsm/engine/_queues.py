"""Queues: which task runs next, and how many at once.

Every task runs in the queue of its (namespace, group, destination). A queue holds a bounded number of waiting
tasks in memory; the others stay in the store and are read when there is room. Timers, and tasks that wait for
their next try, sit in one deadline queue first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from hsm.engine._rows import QueuedTask, QueueKey
from hsm.engine.clock import Clock, TimerHandle
from hsm.engine.deadlines import DeadlineQueue

__all__ = ["Dispatcher", "TaskQueue"]

_REMEMBERED: Final = 10_000


class TaskQueue:
    """The tasks of one destination.

    Attributes:
        key: namespace, group and destination.
        concurrency: tasks that may run at once.
        ready: tasks that could run now, in order of arrival.
        held: tasks in memory, waiting for whatever, running ones included; without timers.
        timers: timers in memory, running ones included.
        running: tasks that run now.
        overflow: the store holds tasks of this queue that memory does not.
    """

    __slots__ = ("concurrency", "held", "key", "overflow", "ready", "running", "timers")

    def __init__(self, key: QueueKey, concurrency: int) -> None:
        self.key = key
        self.concurrency = concurrency
        self.ready: deque[QueuedTask] = deque()
        self.held = 0
        self.timers = 0
        self.running = 0
        self.overflow = False


class Dispatcher:
    """Hands tasks to `run` as they come due, within the bounds of their queues."""

    def __init__(
        self,
        clock: Clock,
        concurrency: Callable[[QueueKey], int],
        buffer: int,
        run: Callable[[QueuedTask], None],
        refill: Callable[[QueueKey], None],
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._clock = clock
        self._concurrency = concurrency
        self._buffer = buffer
        self._run = run
        self._refill = refill
        self._allowed = allowed
        self._queues: dict[QueueKey, TaskQueue] = {}
        self._tasks: dict[str, QueuedTask] = {}
        self._delayed: DeadlineQueue[str] = DeadlineQueue()
        self._alarm: TimerHandle | None = None
        self._alarm_at = 0
        self._started = False
        self._finished: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._tasks

    @property
    def busy(self) -> bool:
        """Whether a task runs or could run now.

        A queue that is full of tasks waiting for their next try reads no others until one is through.
        """
        return any(queue.running or queue.ready for queue in self._queues.values())

    @property
    def started(self) -> bool:
        """Whether tasks are run: not before `start`, nor after `stop`."""
        return self._started

    def get(self, task_id: str) -> QueuedTask | None:
        """A task that is held in memory."""
        return self._tasks.get(task_id)

    def next_due(self) -> int | None:
        """When the next of the tasks in memory that wait for their time is due, in nanoseconds."""
        return self._delayed.next_deadline()

    def start(self) -> None:
        """Begin to run what has been offered."""
        self._started = True
        for queue in list(self._queues.values()):
            self._pump(queue)
        self._arm()

    def resume(self) -> None:
        """Run what was held back while it was not allowed."""
        if self._started:
            for queue in list(self._queues.values()):
                self._pump(queue)

    def stop(self) -> None:
        """Run nothing more; what runs goes on. All the rest stays in the store."""
        self._started = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def full(self, key: QueueKey) -> bool:
        """Whether a queue holds as much as it may; if it does, it will ask for more when there is room."""
        queue = self._queues.get(key)
        if queue is None or queue.held < self._buffer:
            return False
        queue.overflow = True
        return True

    def offer(self, task: QueuedTask) -> bool:
        """Take a task into memory; False if its queue is full, has the task already, or has just had it.

        A row may be read before its task ends, and arrive here afterwards.
        """
        task_id = task.id
        if task_id in self._tasks or self._finished.get(task_id) == task.etag:
            return False
        key = task.queue
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = TaskQueue(key, self._concurrency(key))
        # Timers are bounded by their window: they take no room from tasks that could run now, and one that
        # has been read must not be lost by its queue.
        if task.is_timer:
            queue.timers += 1
        elif queue.held >= self._buffer:
            queue.overflow = True
            return False
        else:
            queue.held += 1
        self._tasks[task_id] = task
        self._place(queue, task)
        return True

    def delay(self, task: QueuedTask, until_nanos: int) -> None:
        """Let a task that has just run wait for its next try."""
        queue = self._queues[task.queue]
        queue.running -= 1
        task.due = until_nanos
        self._place(queue, task)
        self._pump(queue)

    def finish(self, task: QueuedTask) -> None:
        """Forget a task that has just run."""
        queue = self._queues[task.queue]
        queue.running -= 1
        finished = self._finished
        finished[task.id] = task.etag
        if len(finished) > _REMEMBERED:
            finished.popitem(last=False)
        self._drop(queue, task)
        self._pump(queue)

    def discard(self, task_id: str) -> None:
        """Forget a task that waits for its time; one that is about to run finds out by itself."""
        if task_id in self._delayed:
            self._delayed.discard(task_id)
            task = self._tasks[task_id]
            self._drop(self._queues[task.queue], task)

    def forget(self, partition: str) -> list[QueuedTask]:
        """Forget the tasks of a shard; those of them that run, and go on."""
        running: list[QueuedTask] = []
        for task in [task for task in self._tasks.values() if task.partition == partition]:
            if task.id in self._delayed:
                self._delayed.discard(task.id)
                self._drop(self._queues[task.queue], task)
            elif task.run is None or task.run.done():
                queue = self._queues[task.queue]
                queue.ready.remove(task)
                self._drop(queue, task)
            else:
                running.append(task)
        return running

    def _drop(self, queue: TaskQueue, task: QueuedTask) -> None:
        del self._tasks[task.id]
        if task.is_timer:
            queue.timers -= 1
        else:
            queue.held -= 1
        if queue.overflow and queue.held <= self._buffer // 2:
            queue.overflow = False
            self._refill(queue.key)
        if not queue.held and not queue.timers and not queue.overflow:
            self._queues.pop(queue.key, None)

    def _place(self, queue: TaskQueue, task: QueuedTask) -> None:
        if task.due and task.due > self._clock.time_ns():
            self._delayed.put(task.id, task.due)
            self._arm()
            return
        queue.ready.append(task)
        if self._started:
            self._pump(queue)

    def _pump(self, queue: TaskQueue) -> None:
        if not self._started:
            return
        ready = queue.ready
        while ready and queue.running < queue.concurrency:
            if not self._allowed():
                return
            queue.running += 1
            self._run(ready.popleft())

    def _arm(self) -> None:
        deadline = self._delayed.next_deadline()
        if not self._started or deadline is None:
            return
        if self._alarm is not None:
            if self._alarm_at <= deadline:
                return
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._clock.call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        now = self._clock.time_ns()
        while (task_id := self._delayed.pop_due(now)) is not None:
            task = self._tasks[task_id]
            self._place(self._queues[task.queue], task)
        self._arm()
