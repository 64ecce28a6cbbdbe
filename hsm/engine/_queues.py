"""Queues: which task runs next, and how many at once.

Every task runs in the queue of its (namespace, group, destination). Of a queue a bounded number of tasks that
could run are in memory; the others stay in the store and are read when there is room. Timers, and tasks that
wait for their next try, sit in one deadline queue first, and are bounded apart: they take no room from tasks
that could run. One that comes due and finds its queue full leaves memory, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from hsm.engine._alarm import Alarm
from hsm.engine._gates import LONGEST_PAUSE_NANOS, Circuit, Gate, verdict
from hsm.engine._policies import Policies
from hsm.engine._rows import QueuedTask, QueueKey
from hsm.engine._task_queue import TaskQueue
from hsm.engine.clock import Clock, nanos_of
from hsm.engine.deadlines import DeadlineQueue
from hsm.engine.info import QueueInfo
from hsm.errors import DestinationDownError, Disposition, disposition

__all__ = ["Dispatcher"]

_REMEMBERED: Final = 10_000
_MOST_IDLE_QUEUES: Final = 10_000
_MAX_ERROR_TEXT: Final = 200


class Dispatcher:
    """Hands tasks to `run` as they come due, within the bounds of their queues.

    What else it asks for: `refill` to read tasks of a queue that has room again, `woken` to note that a timer
    is due, `move` to put the row of a task that has left memory where it will be found in time.
    """

    def __init__(
        self,
        clock: Clock,
        policies: Policies,
        buffer: int,
        run: Callable[[QueuedTask], None],
        refill: Callable[[QueueKey], None],
        woken: Callable[[QueuedTask], None],
        move: Callable[[QueuedTask], None],
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._clock = clock
        self._policies = policies
        self._buffer = buffer
        self._run = run
        self._refill = refill
        self._woken = woken
        self._move = move
        self._allowed = allowed
        self._queues: dict[QueueKey, TaskQueue] = {}
        self._tasks: dict[str, QueuedTask] = {}
        self._delayed: DeadlineQueue[str] = DeadlineQueue()
        self._closed: DeadlineQueue[QueueKey] = DeadlineQueue()
        self._alarm = Alarm(clock, self._wake)
        self._started = False
        self._finished: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._tasks

    @property
    def busy(self) -> bool:
        """Whether a task runs or could run now."""
        closed = self._closed
        return any(
            queue.running or (queue.ready and queue.key not in closed) for queue in self._queues.values()
        )

    @property
    def started(self) -> bool:
        """Whether tasks are run: not before `start`, nor after `stop`."""
        return self._started

    @property
    def waiting(self) -> int:
        """Tasks in memory that wait for their time."""
        return len(self._delayed)

    def get(self, task_id: str) -> QueuedTask | None:
        """A task that is held in memory."""
        return self._tasks.get(task_id)

    @property
    def tasks(self) -> Mapping[str, QueuedTask]:
        """The tasks that are held in memory, by id."""
        return self._tasks

    def waits(self, task_id: str) -> bool:
        """Whether a task is in memory and not due yet."""
        return task_id in self._delayed

    def next_due(self) -> int | None:
        """When the next of the tasks in memory may run that cannot run yet, in nanoseconds."""
        due, opening = self._delayed.next_deadline(), self._closed.next_deadline()
        return due if opening is None else opening if due is None else min(due, opening)

    def infos(self) -> list[QueueInfo]:
        """The queues as they are now."""
        return [queue.info() for queue in list(self._queues.values())]

    def start(self) -> None:
        """Begin to run what has been offered."""
        self._started = True
        self.resume()
        self._arm()

    def resume(self) -> None:
        """Run what was held back while it was not allowed."""
        if self._started:
            for queue in list(self._queues.values()):
                self._pump(queue)

    def stop(self) -> None:
        """Run nothing more; what runs goes on. All the rest stays in the store."""
        self._started = False
        self._alarm.stop()

    def review(self) -> None:
        """Do as the options say by now, and forget queues that have nothing to do."""
        now = self._clock.time_ns()
        idle: list[TaskQueue] = []
        for queue in list(self._queues.values()):
            if self._policies.live:
                self._follow_policies(queue, now)
            if queue.empty:
                idle.append(queue)
            elif queue.key in self._closed:
                # It opens by its alarm, unless the clock was put back.
                self._pump(queue)
        surplus = len(idle) - _MOST_IDLE_QUEUES
        for number, queue in enumerate(idle):
            if number < surplus or queue.gate is None or queue.gate.at_rest(now):
                self._queues.pop(queue.key, None)

    def _follow_policies(self, queue: TaskQueue, now: int) -> None:
        queue.concurrency = self._policies.concurrency(queue.key)
        rate = self._policies.rate(queue.key)
        gate = queue.gate
        if gate is not None:
            gate.set_rate(rate, now)
            if gate.circuit is not None and self._policies.breaker(queue.key) is None:
                gate.circuit = None
        elif rate is not None:
            queue.gate = Gate(rate)
        self._pump(queue)

    def full(self, key: QueueKey) -> bool:
        """Whether a queue holds as much as it may; if it does, it will ask for more when there is room."""
        queue = self._queues.get(key)
        if queue is None or queue.held < self._buffer:
            return False
        queue.overflow = True
        return True

    def overflowing(self) -> list[QueueKey]:
        """The queues that will ask for more when there is room: nobody need look for it."""
        return [queue.key for queue in self._queues.values() if queue.overflow]

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
            rate = self._policies.rate(key)
            gate = None if rate is None else Gate(rate)
            queue = self._queues[key] = TaskQueue(key, self._policies.concurrency(key), gate)
        if task.due and task.due > self._clock.time_ns():
            return self._wait(queue, task, pausing=not task.is_timer)
        if len(queue.ready) + queue.running >= self._buffer:
            queue.overflow = True
            if task.is_timer:
                self._move(task)
            return False
        self._tasks[task_id] = task
        task.place = queue
        queue.ready.append(task)
        self._pump(queue)
        return True

    def report(self, task: QueuedTask, error: BaseException | None) -> None:
        """Say how the run of a task has ended, before it is said what becomes of the task."""
        queue = _place(task)
        gate = queue.gate
        if error is None and (gate is None or gate.circuit is None):
            return
        now = self._clock.time_ns()
        if error is not None and disposition(error) is not Disposition.DROP:
            queue.error = (f"{type(error).__name__}: {error}"[:_MAX_ERROR_TEXT], now)
        breaker = self._policies.breaker(queue.key)
        if breaker is None:
            return
        well = verdict(error, breaker)
        if gate is None or gate.circuit is None:
            if well is not False:
                return
            gate = queue.gate = gate or Gate()
            gate.circuit = Circuit()
        asked = error.retry_after if isinstance(error, DestinationDownError) else None
        pause = 0 if asked is None else min(nanos_of(asked), LONGEST_PAUSE_NANOS)
        gate.circuit.judge(task.id, well, now, breaker, pause)

    def delay(self, task: QueuedTask, until_nanos: int) -> None:
        """Let a task that has just run wait for its next try."""
        queue = _place(task)
        queue.running -= 1
        task.due = until_nanos
        del self._tasks[task.id]
        if until_nanos > self._clock.time_ns():
            self._wait(queue, task, pausing=True)
        else:
            self._tasks[task.id] = task
            queue.ready.append(task)
        self._pump(queue)
        self._make_room(queue)

    def finish(self, task: QueuedTask) -> None:
        """Forget a task that has just run."""
        finished = self._finished
        finished[task.id] = task.etag
        if len(finished) > _REMEMBERED:
            finished.popitem(last=False)
        self.release(task)

    def release(self, task: QueuedTask) -> None:
        """Forget a task that has just run, and take it again if it is offered."""
        queue = _place(task)
        queue.running -= 1
        del self._tasks[task.id]
        self._pump(queue)
        self._make_room(queue)

    def discard(self, task_id: str) -> None:
        """Forget a task that waits for its time; one that is about to run finds out by itself."""
        if task_id in self._delayed:
            self._delayed.discard(task_id)
            task = self._tasks.pop(task_id)
            self._make_room(self._stop_waiting(task))

    def forget(self, partition: str) -> list[QueuedTask]:
        """Forget the tasks of a shard; those of them that run, and go on."""
        running: list[QueuedTask] = []
        for task in [task for task in self._tasks.values() if task.partition == partition]:
            if task.id in self._delayed:
                self.discard(task.id)
            elif task.run is None or task.run.done():
                queue = _place(task)
                queue.ready.remove(task)
                del self._tasks[task.id]
                self._make_room(queue)
            else:
                running.append(task)
        return running

    def _wait(self, queue: TaskQueue, task: QueuedTask, *, pausing: bool) -> bool:
        """Let a task wait for its time, in memory if there is room."""
        if pausing:
            if queue.paused >= self._buffer:
                self._move(task)
                return False
            queue.paused += 1
        task.pausing = pausing
        task.place = queue
        queue.waiting += 1
        self._tasks[task.id] = task
        self._delayed.put(task.id, task.due)
        self._arm()
        return True

    def _stop_waiting(self, task: QueuedTask) -> TaskQueue:
        queue = _place(task)
        queue.waiting -= 1
        if task.pausing:
            queue.paused -= 1
        return queue

    def _make_room(self, queue: TaskQueue) -> None:
        """Ask for what did not fit, and forget the queue if it has nothing left to do."""
        if queue.overflow and queue.held <= self._buffer // 2:
            queue.overflow = False
            self._refill(queue.key)
        if (
            not queue.running
            and queue.empty
            and (queue.gate is None or queue.gate.at_rest(self._clock.time_ns()))
        ):
            self._queues.pop(queue.key, None)

    def _pump(self, queue: TaskQueue) -> None:
        if not self._started:
            return
        ready = queue.ready
        gate = queue.gate
        while ready and queue.running < queue.concurrency:
            if not self._allowed():
                return
            if gate is not None:
                opens_at = gate.admit(ready[0].id, self._clock.time_ns())
                if opens_at is not None:
                    if opens_at:
                        self._closed.put(queue.key, opens_at)
                        self._arm()
                    return
                self._closed.discard(queue.key)
            queue.running += 1
            self._run(ready.popleft())

    def _arm(self) -> None:
        deadline = self.next_due()
        if self._started and deadline is not None:
            self._alarm.set(deadline)

    def _wake(self) -> None:
        now = self._clock.time_ns()
        while (task_id := self._delayed.pop_due(now)) is not None:
            task = self._tasks[task_id]
            queue = self._stop_waiting(task)
            if queue.held >= self._buffer:
                del self._tasks[task_id]
                queue.overflow = True
                self._move(task)
            else:
                queue.ready.append(task)
                self._pump(queue)
            self._woken(task)
        while (key := self._closed.pop_due(now)) is not None:
            if (opening := self._queues.get(key)) is not None:
                self._pump(opening)
        self._arm()


def _place(task: QueuedTask) -> TaskQueue:
    """The queue of a task that is in memory."""
    queue = task.place
    assert queue is not None
    return queue
