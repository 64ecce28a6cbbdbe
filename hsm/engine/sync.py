"""Engines for code without asyncio: an engine in a thread, and executors that are plain functions."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

from hsm.engine._calls import Calls
from hsm.engine._logs import engine_logger
from hsm.engine.engine import Engine
from hsm.engine.info import DeadLetter, ExecutionInfo, ExecutionTree
from hsm.engine.options import EngineOptions
from hsm.errors import AccessClosedError
from hsm.executor import Environment, Executor
from hsm.machine import Lifecycle, MachineType
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.task import Task
from hsm.tree import Node
from persistence import connect, require
from persistence.store import EngineStore

__all__ = ["SyncEngine", "SyncEnvironment", "SyncExecutor", "in_thread"]

ResultT = TypeVar("ResultT")
ItemT = TypeVar("ItemT")
TaskT = TypeVar("TaskT", bound=Task)

_log: Final = engine_logger()
_BATCH: Final = 100
_NOT_OPEN: Final = "the engine is not open: use `with SyncEngine(...) as engine`"
_numbers: Final = itertools.count(1)


class SyncEngine:
    """An engine for code without asyncio: `with SyncEngine(registry, "sqlite:///jobs.db") as engine`.

    The engine and its store run in a thread of their own, with an event loop. Any thread may call. Functions
    that are given to `start`, `update`, `read` and `wait` run in the engine's thread: they look at the tree
    or change it, must not call the engine, and everybody waits for them.

    The methods are those of `Engine`, which says what they do and raise; `call` and `iterate` reach all the
    others. When the block ends, the engine is closed as `async with` would close it; after an error, running
    tasks are cancelled at once.
    """

    def __init__(
        self,
        registry: Registry,
        store: str | Callable[[], AbstractAsyncContextManager[EngineStore]],
        options: EngineOptions | None = None,
        *,
        run_tasks: bool = True,
        environment: Callable[[Engine], Environment] | None = None,
    ) -> None:
        """Make an engine.

        Args:
            registry: as for `Engine`. Executors are coroutine functions, or `in_thread`.
            store: a URL, or what makes a store when it is called in the engine's thread.
            options: as for `Engine`.
            run_tasks: as for `Engine`.
            environment: as for `Engine`.
        """
        self._store = store
        self._make = partial(Engine, registry, options=options, run_tasks=run_tasks, environment=environment)
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()
        self._given_up = False
        self._main: asyncio.Task[None] | None = None
        self._stop: asyncio.Future[bool]
        self._loop: asyncio.AbstractEventLoop
        self._calls: Calls | None = None
        self._engine: Engine

    def __enter__(self) -> Self:
        """Open store and engine; raises what that raises."""
        if self._thread is not None:
            raise RuntimeError("an engine is opened once")
        opened: Future[None] = Future()
        run = partial(contextvars.copy_context().run, self._run, opened)
        self._thread = threading.Thread(target=run, name=f"hsm-engine-{next(_numbers)}", daemon=True)
        self._thread.start()
        try:
            opened.result()
        except KeyboardInterrupt:
            self._give_up()
            raise
        return self

    def _give_up(self) -> None:
        self._given_up = True
        if self._main is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._main.cancel)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may have come to its end already, by an error that `_ended` tells.
            self._loop.call_soon_threadsafe(self._stop.set_result, kind is not None)
        try:
            self._ended.result()
        except Exception:
            if kind is None:
                raise
            _log.exception("the engine did not close well, after another error")

    def _run(self, opened: Future[None]) -> None:
        try:
            asyncio.run(self._serve(opened))
        except BaseException as error:  # noqa: BLE001 - it is passed on to the thread that waits
            (self._ended if opened.done() else opened).set_exception(error)
        else:
            self._ended.set_result(None)

    async def _serve(self, opened: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = self._loop.create_future()
        self._main = asyncio.current_task()
        if self._given_up:
            return
        store = require(connect(self._store), EngineStore) if isinstance(self._store, str) else self._store()
        async with store as opened_store, self._make(opened_store) as self._engine:
            self._calls = calls = Calls(lambda: RuntimeError("the engine is closed"))
            try:
                opened.set_result(None)
                if await self._stop:
                    await self._engine.shutdown(timedelta())
            finally:
                calls.close()

    # What an engine does

    def call(self, work: Callable[[Engine], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """The result of a coroutine of the engine: `engine.call(lambda engine: engine.terminate(key))`.

        Raises:
            RuntimeError: the engine is not open, or this is its own thread.
        """
        if self._calls is None:
            raise RuntimeError(_NOT_OPEN)
        return self._calls.call(lambda: work(self._engine))

    def iterate(self, items: Callable[[Engine], AsyncIterator[ItemT]]) -> Iterator[ItemT]:
        """The items that an iterator of the engine gives, read ahead a hundred at a time."""
        iterator = self.call(lambda engine: _made(items, engine))
        try:
            while batch := self.call(lambda _: _take(iterator)):
                yield from batch
        finally:
            # A closed engine has closed it, too.
            with contextlib.suppress(RuntimeError):
                self.call(lambda _: _close(iterator))

    def now(self) -> datetime:
        """See `Engine`."""
        if self._calls is None:
            raise RuntimeError(_NOT_OPEN)
        return self._engine.now()

    def start(
        self,
        key: ExecutionKey,
        data: object,
        *,
        machine_type: MachineType | None = None,
        request_id: str = "",
        on_start: Callable[[Node], object] | None = None,
    ) -> Ref:
        """See `Engine`."""
        return self.call(
            lambda engine: engine.start(
                key, data, machine_type=machine_type, request_id=request_id, on_start=on_start
            )
        )

    def update(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT:
        """See `Engine`."""
        return self.call(lambda engine: engine.update(ref, fn))

    def signal(self, ref: Ref, fn: Callable[[Node], object], *, request_id: str) -> None:
        """See `Engine`."""
        self.call(lambda engine: engine.signal(ref, fn, request_id=request_id))

    def read(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT:
        """See `Engine`."""
        return self.call(lambda engine: engine.read(ref, fn))

    def wait(self, ref: Ref, until: Callable[[Node], bool], *, timeout: timedelta | None = None) -> Ref:
        """See `Engine`."""
        return self.call(lambda engine: engine.wait(ref, until, timeout=timeout))

    def list(
        self, *, namespace: str | None = None, status: Lifecycle | None = None, state: str | None = None
    ) -> Iterator[ExecutionInfo]:
        """See `Engine`."""
        return self.iterate(lambda engine: engine.list(namespace=namespace, status=status, state=state))

    def describe(self, key: ExecutionKey) -> ExecutionTree:
        """See `Engine`."""
        return self.call(lambda engine: engine.describe(key))

    def dead_letters(self) -> Iterator[DeadLetter]:
        """See `Engine`."""
        return self.iterate(lambda engine: engine.dead_letters())

    def replay(self, dead: DeadLetter) -> None:
        """See `Engine`."""
        self.call(lambda engine: engine.replay(dead))

    def drain(self) -> None:
        """See `Engine`."""
        self.call(lambda engine: engine.drain())


async def _made(items: Callable[[Engine], AsyncIterator[ItemT]], engine: Engine) -> AsyncIterator[ItemT]:
    return items(engine)


async def _take(iterator: AsyncIterator[ItemT]) -> list[ItemT]:
    batch: list[ItemT] = []
    async for item in iterator:
        batch.append(item)
        if len(batch) == _BATCH:
            break
    return batch


async def _close(iterator: AsyncIterator[object]) -> None:
    if isinstance(iterator, AsyncGenerator):
        await iterator.aclose()


class SyncEnvironment:
    """The environment of an executor that runs in a thread. It ends with the run.

    A block of access does not go through threads; `update` does what it does.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._calls = Calls(lambda: AccessClosedError("the run that this environment belongs to is over"))

    @property
    def environment(self) -> Environment:
        """The environment in the engine's thread; only `now` may be called from here."""
        return self._environment

    def now(self) -> datetime:
        """See `Environment`."""
        return self._environment.now()

    def read(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT:
        """See `Environment`. `fn` runs in the engine's thread.

        Raises:
            AccessClosedError: the run is over: its time was up, or the engine was closed.
        """
        return self._calls.call(lambda: self._environment.read(ref, fn))

    def update(self, ref: Ref, fn: Callable[[Node], ResultT], *, keep_task: bool = False) -> ResultT:
        """See `Environment`. `fn` runs in the engine's thread.

        Raises:
            AccessClosedError: the run is over: its time was up, or the engine was closed.
        """
        return self._calls.call(lambda: self._environment.update(ref, fn, keep_task=keep_task))

    def close(self) -> None:
        """The run is over."""
        self._calls.close()


SyncExecutor: TypeAlias = Callable[[SyncEnvironment, Ref, TaskT], None]
"""Runs a task of any kind in a thread; may block."""


def in_thread(executor: SyncExecutor[TaskT], *, threads: int = 100) -> Executor[TaskT]:
    """Let a plain function, which may block, be an executor.

    Use it as `registry.register_executor(Call, in_thread(call))`.

    A thread cannot be cancelled. When the time of a run is up, or the engine is closed, the function goes on,
    but can read and write no more; the task is tried again meanwhile. Give the function time-outs of its own.
    The process does not end before the function does.

    Args:
        executor: the function.
        threads: that run it at once; what waits for one is using up its time. Fewer than the queue's
            `concurrency` are too few.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=getattr(executor, "__name__", "executor"))

    async def run(environment: Environment, ref: Ref, task: TaskT) -> None:
        sync = SyncEnvironment(environment)
        context = contextvars.copy_context()
        try:
            await asyncio.get_running_loop().run_in_executor(
                pool, lambda: context.run(executor, sync, ref, task)
            )
        finally:
            sync.close()

    return run
