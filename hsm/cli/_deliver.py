"""`hsm deliver`: the lines of a file become executions, and a run ends when all of them are through."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import attrs
from rich.console import Console

from hsm.cli._cadence import Cadence
from hsm.cli._database import NAMESPACE, open_store
from hsm.cli._errors import (
    CommandError,
    ConflictingLineError,
    DamagedRowError,
    LineError,
    OversizedLineError,
)
from hsm.cli._lines import Delivery, read_lines
from hsm.cli._outage import Outage
from hsm.cli._progress import show_progress
from hsm.cli._tally import Tally
from hsm.components import callback
from hsm.components.callback import Callback, CallbackOptions, Scheduled, scheduled
from hsm.components.callback.http import HttpSender
from hsm.engine import Backoff, Breaker, Engine, EngineOptions
from hsm.errors import ExecutionAlreadyStartedError, SerializationError, TransactionTooLargeError
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from persistence import EngineStore

__all__ = ["DeliverOptions", "deliver"]

# Starts that wait for a commit at once: the store writes them together.
_STARTS: Final = 128
_TIMERS: Final = 256
_IDLE_SECONDS: Final = 1.0
# What another process does to the same database is looked for in these intervals, at most.
_POLL: Final = timedelta(seconds=2)
_DEAD_SECONDS: Final = 1.0
_RECOUNT_SECONDS: Final = 3.0
_RECOUNT_AFTER_IDLE: Final = 3
_LOOK_AFTER_IDLE: Final = 2
# Longer than any pause that the engine itself makes after an error.
_SUSPECT_AFTER_IDLE: Final = 300
# One receiver may serve many addresses, of which some fail whatever the others do.
_BREAKER: Final = Breaker(failures=100, open_time=timedelta(seconds=10))
_STOP_GRACE: Final = timedelta(seconds=5)
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_SIGNAL_STATUS: Final = 128


@attrs.frozen(kw_only=True)
class DeliverOptions:
    """How to deliver.

    Attributes:
        concurrency: requests at once to one destination.
        first_retry: the pause after the first failed attempt, in seconds; doubled each time.
        longest_retry: the longest pause, in seconds.
        patience: how long the database may be away, in seconds.
    """

    concurrency: int = 32
    first_retry: float = 1.0
    longest_retry: float = 3600.0
    patience: float = 60.0


async def deliver(path: Path, url: str, options: DeliverOptions, out: Console, errors: Console) -> int:
    """Deliver a file, and whatever the database still has to deliver; the exit status."""
    # Opened first: a file that cannot be read must not leave a database behind.
    try:
        file = path.open("rb")
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    with file, _stop_signals() as stopped:
        async with open_store(url) as store:
            tally, outage = Tally(), Outage(options.patience, errors)
            await _count(store, tally)
            for message in tally.unreadable.values():
                errors.print(f"database: {message}", markup=False, highlight=False, soft_wrap=True)
            async with (
                HttpSender() as sender,
                Engine(_registry(sender, tally, options), store, _engine_options(options)) as engine,
                show_progress(out, tally),
            ):
                run = _Run(engine, tally, errors, path, outage)
                stop = await _first(run.all(read_lines(file)), stopped)
            if run.recounted and stop is None:
                await outage.outlast(partial(_count, store, tally))
        _summarize(out, tally, path, stop)
    if stop is not None:
        return _SIGNAL_STATUS + stop
    return 0 if tally.flawless else 1


async def _count(store: EngineStore, tally: Tally) -> None:
    """Count what the database holds, while this process runs no tasks."""
    async with Engine(_registry(), store, run_tasks=False) as engine:
        await tally.recount(engine)


def _registry(
    sender: HttpSender | None = None, tally: Tally | None = None, options: DeliverOptions | None = None
) -> Registry:
    registry = Registry()
    options = options or DeliverOptions()
    delays = Backoff(timedelta(seconds=options.first_retry), timedelta(seconds=options.longest_retry))
    callback.register(
        registry,
        sender or HttpSender(),
        CallbackOptions(delays=delays, patience=timedelta(seconds=options.patience)),
        observer=None if tally is None else tally.add_attempt,
    )
    return registry


def _engine_options(options: DeliverOptions) -> EngineOptions:
    return EngineOptions(
        concurrency=options.concurrency,
        # Timers have no destination, and no receiver that could be overrun.
        concurrency_of=lambda _namespace, _group, destination: None if destination else _TIMERS,
        drain_timeout=_STOP_GRACE,
        poll_interval=_POLL,
        breaker=_BREAKER,
    )


class _Run:
    """One run over a file.

    Attributes:
        recounted: whether the tally was counted anew since the run began.
        recounted_amid: whether nothing has confirmed that count yet.
    """

    def __init__(self, engine: Engine, tally: Tally, errors: Console, path: Path, outage: Outage) -> None:
        self._engine = engine
        self._tally = tally
        self._errors = errors
        self._path = path
        self._outage = outage
        self.recounted = False
        self.recounted_amid = False
        self._dead = Cadence(_DEAD_SECONDS)
        self._recounts = Cadence(_RECOUNT_SECONDS)

    async def all(self, lines: Iterator[Delivery | LineError]) -> None:
        """Return when every delivery is through."""
        async with asyncio.TaskGroup() as starters:
            for _ in range(_STARTS):
                starters.create_task(self._start_some(lines))
        await self._finish()

    async def _start_some(self, lines: Iterator[Delivery | LineError]) -> None:
        """Take lines until there are none; what comes first in the file reaches the store first."""
        for line in lines:
            if isinstance(line, LineError):
                self._refuse(line)
                # A file full of errors must not hold up the deliveries.
                await asyncio.sleep(0)
                continue
            try:
                await self._start(line)
            except LineError as error:
                self._refuse(error)

    def _refuse(self, error: LineError) -> None:
        self._tally.refused += 1
        self._errors.print(
            f"{self._path}: {type(error).__name__}: {error}", markup=False, highlight=False, soft_wrap=True
        )

    async def _start(self, delivery: Delivery) -> None:
        key = ExecutionKey(NAMESPACE, delivery.id, self._tally.new_run_id())
        try:
            # The same request is recognised if a try that failed did reach the store.
            ref = await self._outage.outlast(partial(self._start_execution, key, delivery))
        except ExecutionAlreadyStartedError as error:
            raise ConflictingLineError(
                delivery.line, f"there is another delivery with the id {delivery.id!r} already"
            ) from error
        except SerializationError as error:
            raise DamagedRowError(delivery.line, str(error)) from error
        except TransactionTooLargeError as error:
            raise OversizedLineError(delivery.line, f"the database cannot keep it: {error}") from error
        self._tally.add_line(delivery.id, new=ref.execution.run_id == key.run_id)

    async def _start_execution(self, key: ExecutionKey, delivery: Delivery) -> Ref:
        request_id = delivery.digest
        data = Callback.new(
            delivery.request,
            request_id=request_id,
            max_attempts=delivery.max_attempts,
            registration_time=self._engine.now(),
        )
        return await self._engine.start(
            key, data, request_id=request_id, on_start=lambda node: node.apply(scheduled, Scheduled())
        )

    async def _finish(self) -> None:
        """Return when nothing is left that could still be delivered."""
        tally = self._tally
        if tally.total < tally.started + tally.known:
            # Another process has started some of the lines since the count at the beginning.
            await self._outage.outlast(self._recount)
        through = await self._wait()
        while through and (self.recounted_amid or tally.foreign):
            self.recounted, self.recounted_amid, tally.foreign = True, False, False
            await self._outage.outlast(partial(self._recounts.do, partial(tally.recount, self._engine)))
            through = await self._wait()

    async def _wait(self) -> bool:
        """Wait until everything is through as far as the tally tells, or (False) nothing moves any more."""
        tally, idle = self._tally, 0
        while tally.unfinished:
            tally.changed.clear()
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await tally.changed.wait()
                idle = 0
            except TimeoutError:
                idle += 1
                before = tally.unfinished
                if await self._outage.outlast(partial(self._is_stuck, idle)):
                    return False
                if tally.unfinished != before:
                    idle = 0  # another process is at work
        return True

    async def _is_stuck(self, idle: int) -> bool:
        """Look at what the observer does not tell of; whether what is left will never run.

        Tasks that cannot be read never do, for example.
        """
        tally = self._tally
        if self._dead.due:
            await self._dead.do(partial(tally.count_dead, self._engine))
        suspicious = idle >= (_LOOK_AFTER_IDLE if tally.nameless else _SUSPECT_AFTER_IDLE)
        # With another process at work on the same database, or after a commit whose outcome nobody knows,
        # not every end is seen here.
        if not (suspicious or idle >= _RECOUNT_AFTER_IDLE) or not self._recounts.due:
            return False
        await self._recount()
        if not suspicious:
            return False
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                await self._engine.drain()
        except TimeoutError:
            return False
        return tally.pausing == 0

    async def _recount(self) -> None:
        """Count anew while attempts end: what ends at the same moment may be counted twice."""
        self.recounted_amid = self.recounted = True
        await self._recounts.do(partial(self._tally.recount, self._engine))


@contextmanager
def _stop_signals() -> Generator[asyncio.Future[int], None, None]:
    """A future that the first SIGINT or SIGTERM sets; the second one ends the process as usual."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)
        restore()

    def restore() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield stopped
    finally:
        restore()
        stopped.cancel()


async def _first(work: Coroutine[None, None, None], stopped: asyncio.Future[int]) -> int | None:
    """Do the work until it is done or a signal comes; the signal's number."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return None
        return stopped.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


def _summarize(out: Console, tally: Tally, path: Path, stop: int | None) -> None:
    lines = tally.started + tally.known + tally.refused
    text = [
        f"{path}: {lines} lines: {tally.started} new, {tally.known} known, {tally.refused} refused",
        f"this run: {tally.confirmed} delivered, {tally.failed} failed for good, {tally.retries} retries",
        f"in all: {tally.all_confirmed} delivered, {tally.all_failed} failed, {tally.unfinished} waiting",
    ]
    if tally.all_failed > tally.dead:
        text.append("`hsm status --state FAILED` lists what has failed for good")
    if tally.dead or tally.nameless:
        text.append(
            "some deliveries met an error that is not the receiver's; `hsm dead` shows and replays them"
        )
    if stop is not None:
        text.append(f"stopped by {signal.Signals(stop).name}; run the same command again to go on")
    out.print("\n".join(text), markup=False, highlight=False, soft_wrap=True)
