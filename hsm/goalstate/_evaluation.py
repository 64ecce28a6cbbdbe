"""One evaluation: state and goal are read, and the actions for the two run in order until one fails."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from inspect import isawaitable
from typing import Final, TypeVar

from hsm.engine._limits import TimeLimits
from hsm.engine.clock import nanos_of
from hsm.goalstate._logs import logger
from hsm.goalstate.entity import Action, ActionList, AnyEntity, Run
from hsm.goalstate.options import Options

__all__ = ["Evaluation", "Evaluator"]

# Threads beyond the number of workers, for calls that go on though nobody waits for them any more.
_SPARE_THREADS: Final = 1000
ResultT = TypeVar("ResultT")

_MICROSECOND: Final = timedelta(microseconds=1)


class Evaluation:
    """What has come of an evaluation.

    Attributes:
        finished: it has run to its end, well or not; else it was broken off.
        error: what it has met.
        leftover: the call in a thread that goes on though its time is up.
    """

    __slots__ = ("error", "finished", "leftover")

    def __init__(self) -> None:
        self.finished = False
        self.error: Exception | None = None
        self.leftover: asyncio.Future[Awaitable[None] | None] | None = None


class Evaluator:
    """Evaluates entities, each in an asyncio task of its own."""

    def __init__(self, options: Options, limits: TimeLimits) -> None:
        self._options = options
        self._limits = limits
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Call nothing in threads any more; what runs there goes on."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def evaluate(
        self,
        load: Callable[[], AnyEntity | Awaitable[AnyEntity]],
        run: Run,
        evaluation: Evaluation,
        end: int | None = None,
        extend: Callable[[timedelta], Awaitable[None]] | None = None,
    ) -> None:
        """Run the actions of an entity; what they raise is noted.

        Args:
            load: brings the entity that is read and acted upon.
            run: is passed to the actions.
            evaluation: is filled in.
            end: when it has to be over, in nanoseconds; unless given, in the time that the options say.
            extend: is told how long the list may take, before it begins, if that is longer than usual.
        """
        try:
            await self._evaluate(load, run, evaluation, end, extend)
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            # Nobody cancels this run: the action let the cancellation of something else out.
            evaluation.error = RuntimeError("the action was cancelled by something that it awaited")
            evaluation.error.__cause__ = error
        except Exception as error:  # noqa: BLE001 - the engine decides by its kind what is done
            evaluation.error = error
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - or the entity would never be run again
            evaluation.error = RuntimeError(f"the action raised {error!r}, which is no Exception")
            evaluation.error.__cause__ = error
        evaluation.finished = True

    async def _evaluate(
        self,
        load: Callable[[], AnyEntity | Awaitable[AnyEntity]],
        run: Run,
        evaluation: Evaluation,
        end: int | None,
        extend: Callable[[timedelta], Awaitable[None]] | None,
    ) -> None:
        metrics, name, clock = self._options.metrics, self._options.name, self._options.clock
        usual = self._options.run_timeout
        if end is None and usual is not None:
            end = clock.time_ns() + nanos_of(usual)
        try:
            loaded = load()
            entity = (
                await self._limited(loaded, self._left(end), "loading the entity")
                if isawaitable(loaded)
                else loaded
            )
            found = entity.read()
            standing = (
                await self._limited(found, self._left(end), "reading state and goal")
                if isawaitable(found)
                else found
            )
            todo: ActionList[AnyEntity] = entity.action_list(standing[0], standing[1])
        except Exception as error:
            if metrics is not None:
                metrics.failed(name, error)
            raise
        try:
            if todo.timeout is not None:
                wanted = clock.time_ns() + nanos_of(todo.timeout)
                if extend is not None and end is not None and wanted > end:
                    await extend(todo.timeout)
                end = wanted
            for action in todo.actions:
                await self._act(action, entity, run, end, evaluation)
                if run.rest_skipped:
                    break
        finally:
            if todo.on_done is not None:
                _call(todo.on_done, run)

    async def _act(
        self,
        action: Action[AnyEntity],
        entity: AnyEntity,
        run: Run,
        end: int | None,
        evaluation: Evaluation,
    ) -> None:
        limit, left = action.timeout, self._left(end)
        if left is not None:
            limit = left if limit is None else min(limit, left)
        metrics = self._options.metrics
        started = 0.0 if metrics is None else time.perf_counter()
        failure: BaseException | None = None
        try:
            if action.asynchronous:
                result = action.execute(entity, run)
            else:
                result = await self._limited(
                    self._in_thread(action, entity, run, evaluation), limit, action.name
                )
            if result is not None:
                await self._limited(result, limit, action.name)
        except BaseException as error:
            failure = error
            raise
        finally:
            if metrics is not None:
                metrics.ran(self._options.name, action.name, time.perf_counter() - started, failure)

    def _left(self, end: int | None) -> timedelta | None:
        """The time until then."""
        return None if end is None else (end - self._options.clock.time_ns()) // 1000 * _MICROSECOND

    async def _limited(self, work: Awaitable[ResultT], limit: timedelta | None, what: str) -> ResultT:
        """The result of `work`, which is cancelled after a while."""
        current = asyncio.current_task()
        if limit is None or current is None:
            return await work
        self._limits.begin(current, limit)
        try:
            result = await work
        except asyncio.CancelledError as error:
            if self._limits.end(current):
                raise TimeoutError(f"{what} took longer than {max(limit, timedelta())}") from error
            raise
        except BaseException:
            self._limits.end(current)
            raise
        self._limits.end(current)
        return result

    async def _in_thread(
        self, action: Action[AnyEntity], entity: AnyEntity, run: Run, evaluation: Evaluation
    ) -> Awaitable[None] | None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(
                self._options.workers + _SPARE_THREADS, thread_name_prefix=self._options.name
            )
        context = contextvars.copy_context()
        submitted = self._threads.submit(context.run, action.execute, entity, run)
        call = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            # One that has not begun, for want of threads, must not begin when nobody waits for it.
            if not call.done() and not submitted.cancel():
                evaluation.leftover = call
            raise


def _call(on_done: Callable[[], None], run: Run) -> None:
    try:
        on_done()
    except Exception:  # noqa: BLE001 - it is logged, with its traceback
        logger.exception("`on_done` of entity %s has failed", run.entity_id)
