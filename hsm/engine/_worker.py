"""The worker: one run of one task, and what becomes of the task afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from hsm.engine._executions import Executions
from hsm.engine._family import OwnExecutor
from hsm.engine._gates import LONGEST_PAUSE_NANOS
from hsm.engine._limits import TimeLimits
from hsm.engine._loader import Loader
from hsm.engine._logs import engine_logger, of_task
from hsm.engine._pausing import park
from hsm.engine._policies import Policies
from hsm.engine._queues import Dispatcher
from hsm.engine._rows import QueuedTask, decode_task, kind_of
from hsm.engine._translation import translated
from hsm.engine.options import EngineOptions
from hsm.engine.telemetry import Outcome
from hsm.errors import (
    DestinationDownError,
    Disposition,
    ExecutionNotFoundError,
    HSMError,
    PausedError,
    RetryLaterError,
    SerializationError,
    disposition,
)
from hsm.executor import Environment, execute
from hsm.ref import Ref
from hsm.registry import Registry
from hsm.task import Task
from persistence import errors as storage
from persistence.executions import dead_letter_key, timer_key
from persistence.proto.execution_pb2 import DeadLetterRow, TaskRow
from persistence.store import DeleteRequest, EngineStore, SetRequest

__all__ = ["Worker"]

_log: Final = engine_logger()
_MAX_ERROR_TEXT: Final = 4000
_NANOS: Final = 10**9


class Worker:
    """Runs tasks: decodes, validates, executes, and then deletes, rewrites or dead-letters the row.

    A task that was running when the process died is found in the store by the next one and run again.
    """

    def __init__(
        self,
        environment: Environment,
        store: EngineStore,
        registry: Registry,
        options: EngineOptions,
        policies: Policies,
        executions: Executions,
        dispatcher: Dispatcher,
        loader: Loader,
        own: Mapping[type[Task], OwnExecutor],
    ) -> None:
        self._environment = environment
        self._store = store
        self._registry = registry
        self._options = options
        self._policies = policies
        self._executions = executions
        self._dispatcher = dispatcher
        self._loader = loader
        self._own = own
        self._limits = TimeLimits(options.clock)

    def close(self) -> None:
        """Watch over nothing any more."""
        self._limits.close()

    async def run(self, task: QueuedTask) -> None:
        """Run a task once. It is out of the dispatcher, or waiting in it, when this returns."""
        try:
            error = await self._execute(task)
            self._dispatcher.report(task, error)
            if error is None and task.spent:
                self._ended(Outcome.ACKNOWLEDGED)
                self._dispatcher.finish(task)
                return
            await self._conclude(task, error)
        except asyncio.CancelledError as cancelled:
            if not self._dispatcher.started:
                # The engine is closing; the row stays for the next one.
                self._ended(Outcome.CANCELLED)
                self._dispatcher.finish(task)
                raise
            _log.warning(
                "the run of task %s was cancelled, not by the engine; it is tried again",
                task.id,
                extra=of_task(task),
            )
            self._dispatcher.report(task, cancelled)
            self._wait(task, cancelled)
        except Exception as failure:  # noqa: BLE001 - it is logged, with its traceback
            # One task must not take the engine with it.
            _log.exception(
                "the end of task %s cannot be written down; it is tried again", task.id, extra=of_task(task)
            )
            self._wait(task, failure)

    async def _execute(self, task: QueuedTask) -> Exception | None:
        try:
            if task.row is None:
                raise SerializationError(f"the row {task.key!r} is not a task")
            if task.task is None:
                message = task.row.info
                task.task = decode_task(self._registry, message.type, message.data, kind_of(task.row.kind))
            ref = task.ref()
            await self._executions.validate(ref, task)
            limit = self._time_limit(task.row.info.type)
            run = task.run
            if limit is None or run is None:
                await self._perform(ref, task.task)
            else:
                await self._execute_within(limit, run, ref, task.task)
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            # Nobody cancels this run: the executor let the cancellation of something else out.
            cancelled = RuntimeError("the executor was cancelled by something that it awaited")
            cancelled.__cause__ = error
            return cancelled
        except Exception as error:  # noqa: BLE001 - whatever it is, `disposition` says what it means
            return error
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - or the task would stay in its queue, and never run again
            failure = RuntimeError(f"the executor raised {error!r}, which is no Exception")
            failure.__cause__ = error
            return failure
        return None

    async def _execute_within(self, limit: timedelta, run: asyncio.Task[None], ref: Ref, task: Task) -> None:
        self._limits.begin(run, limit)
        try:
            await self._perform(ref, task)
        except asyncio.CancelledError as error:
            if self._limits.end(run):
                raise TimeoutError(f"the executor took longer than {limit}") from error
            raise
        except BaseException:
            self._limits.end(run)
            raise
        self._limits.end(run)

    def _perform(self, ref: Ref, task: Task) -> Awaitable[None]:
        own = self._own.get(type(task))
        if own is not None:
            return own(ref, task)
        return execute(self._registry, self._environment, ref, task)

    def _time_limit(self, type_id: int) -> timedelta | None:
        registration = self._registry.task(type_id)
        if registration is not None and registration.timeout is not None:
            return registration.timeout
        return self._options.task_timeout

    async def _conclude(self, task: QueuedTask, error: Exception | None) -> None:
        """Do with the task what its run asks for; while the store does not answer, try again and again."""
        answer = Disposition.ACKNOWLEDGE
        if error is not None:
            answer = disposition(error, task.ref().path if task.row is not None else None)
        asked = _asked(error)
        if isinstance(error, DestinationDownError) and isinstance(error.inner, Exception):
            error = error.inner
            asked = asked or _asked(error)
        if task.spent:
            # The machine has moved on with the task; there is no row left to retry.
            if error is not None and answer not in {Disposition.ACKNOWLEDGE, Disposition.DROP}:
                _log.error(
                    "task %s failed after its state was written: %r",
                    task.id,
                    error,
                    exc_info=error,
                    extra=of_task(task),
                )
            self._ended(Outcome.ACKNOWLEDGED, error)
            self._dispatcher.finish(task)
            return
        try:
            if answer is Disposition.ACKNOWLEDGE or answer is Disposition.DROP:
                await self._acknowledge(task)
                outcome = Outcome.DROPPED if answer is Disposition.DROP else Outcome.ACKNOWLEDGED
                self._ended(outcome, error)
                self._dispatcher.finish(task)
            elif answer is Disposition.RETRY_UNCOUNTED and error is not None:
                if isinstance(error, PausedError) and await park(self._executions, self._store, task):
                    self._ended(Outcome.POSTPONED, error)
                    self._dispatcher.finish(task)
                else:
                    self._wait(task, error, asked)
            elif error is not None:
                await self._retry_or_bury(task, error, answer, asked)
        except HSMError as failure:
            if not isinstance(failure, RetryLaterError):
                raise
            self._wait(task, failure, failure.retry_after)

    def _ended(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """What becomes of a task is settled; for those who tell of it."""

    def _wait(self, task: QueuedTask, error: BaseException, asked: timedelta | None = None) -> None:
        """Try again later, without a trace in the store: nothing is wrong with the task."""
        _log.debug("task %s has to wait: %r", task.id, error, extra=of_task(task))
        self._ended(Outcome.POSTPONED, error)
        if task.partition not in self._loader:
            # Whoever runs its shard by now finds it there.
            self._dispatcher.release(task)
            return
        task.tries += 1
        pause = self._pause(task, error, task.tries, asked)
        self._dispatcher.delay(task, self._options.clock.time_ns() + pause)

    def _pause(self, task: QueuedTask, error: BaseException, attempt: int, asked: timedelta | None) -> int:
        """Nanoseconds until the next try; not before what the error has asked for."""
        pause = self._policies.backoff(task.task, error).delay(attempt, self._options.random)
        if asked is not None:
            pause = max(pause, asked)
        return min(round(pause.total_seconds() * _NANOS), LONGEST_PAUSE_NANOS)

    async def _acknowledge(self, task: QueuedTask) -> None:
        """Take the task off its node and out of its queue, in one commit; off the queue alone if need be."""
        if task.row is not None:
            try:
                await self._executions.complete(task)
            except RetryLaterError:
                raise
            except HSMError:
                # The machine or the whole execution is gone, or cannot be read: only the row is left.
                pass
            else:
                return
        await self._write([DeleteRequest(partition=task.partition, key=task.key, etag=task.etag)])

    async def _retry_or_bury(
        self, task: QueuedTask, error: Exception, answer: Disposition, asked: timedelta | None
    ) -> None:
        failures = (task.row.failures if task.row is not None else 0) + 1
        if task.row is None or answer is Disposition.DEAD_LETTER or failures >= self._options.max_attempts:
            self._ended(await self._bury(task, error), error)
            self._dispatcher.finish(task)
            return
        _log.info("task %s failed, attempt %d: %r", task.id, failures, error, extra=of_task(task))
        row = TaskRow()
        row.CopyFrom(task.row)
        row.failures = failures
        pause = self._pause(task, error, failures, asked)
        row.not_before_nanos = self._options.clock.time_ns() + pause
        row.last_error = _text(error)
        # Among the timers, whatever it is: there it is found in time, and in nobody's way until then.
        key = timer_key(row.not_before_nanos, task.id)
        etag = await self._write(
            [
                DeleteRequest(partition=task.partition, key=task.key, etag=task.etag),
                SetRequest(partition=task.partition, key=key, value=row.SerializeToString()),
            ],
        )
        self._ended(Outcome.DROPPED if etag is None else Outcome.RETRIED, error)
        self._dispatcher.finish(task)
        if etag is not None:
            task.replace(key, etag, row)
            self._loader.offer(task)

    async def _bury(self, task: QueuedTask, error: Exception) -> Outcome:
        """Move the row to the dead letters, and note that on the machine, in one transaction.

        Nothing is to be left of an execution that was deleted meanwhile: its task is dropped.
        """
        row = DeadLetterRow(
            row_key=task.key,
            error_type=type(error).__qualname__,
            error=_text(error),
            time_nanos=self._options.clock.time_ns(),
        )
        if task.row is None:
            row.undecodable = task.raw
        else:
            row.task.CopyFrom(task.row)
            row.task.failures += 1
        letter = SetRequest(
            partition=task.partition, key=dead_letter_key(task.id), value=row.SerializeToString()
        )
        own = DeleteRequest(partition=task.partition, key=task.key, etag=task.etag)
        try:
            # If the machine is gone, or the execution cannot be read, only the row is left.
            if not await self._replace(task, letter) and await self._write([own, letter]) is None:
                # Somebody else has ended it.
                return Outcome.DROPPED
        except ExecutionNotFoundError:
            await self._write([own])
            return Outcome.DROPPED
        _log.warning("task %s is dead-lettered: %r", task.id, error, extra=of_task(task))
        return Outcome.DEAD_LETTERED

    async def _replace(self, task: QueuedTask, letter: SetRequest) -> bool:
        """Put a dead letter in the place of a task, and note that on its machine; whether it is done."""
        if task.row is None:
            return False
        task.instead = letter
        try:
            await self._executions.complete(task)
        except (RetryLaterError, ExecutionNotFoundError):
            raise
        except HSMError:
            return False
        finally:
            # If this has to be tried again, the task runs before that, and may end well.
            task.instead = None
        return True

    async def _write(self, operations: Sequence[DeleteRequest | SetRequest]) -> str | None:
        """Change task rows under their etags; None if somebody else has done that already."""
        try:
            return await self._store.multi(operations)
        except storage.ETagMismatchError:
            return None
        except storage.PersistenceError as error:
            raise translated(error) from error


def _asked(error: Exception | None) -> timedelta | None:
    """The pause that an error asks for."""
    pause: object = getattr(error, "retry_after", None)
    return pause if isinstance(pause, timedelta) else None


def _text(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"[:_MAX_ERROR_TEXT]
    # A file name that is no UTF-8 comes with surrogates, which protobuf refuses.
    return text.encode(errors="backslashreplace").decode()
