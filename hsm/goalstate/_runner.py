"""The runner: claims entities of the store, evaluates them, and writes down what follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from hsm.engine._processes import Presence
from hsm.engine.clock import from_nanos, nanos_of, sleep_for
from hsm.errors import SerializationError
from hsm.goalstate import _life
from hsm.goalstate._dispatcher import Dispatcher
from hsm.goalstate._entry import Entry, due_after
from hsm.goalstate._evaluation import Evaluation
from hsm.goalstate._logs import logger
from hsm.goalstate._pauses import Pauses, Verdict, error_text
from hsm.goalstate._reader import Reader
from hsm.goalstate._rows import EntityKey, GoalRows, uninterrupted
from hsm.goalstate.entity import Run
from hsm.goalstate.errors import ClaimLostError
from hsm.goalstate.kinds import EntityKind
from hsm.goalstate.options import DurableOptions
from persistence.errors import PersistenceError
from persistence.proto.goal_pb2 import GoalClaim, GoalRow
from persistence.store import EngineStore

__all__ = ["Runner"]

_MAX_ERROR_TEXT: Final = 4000


class StoredEntry(Entry):
    """An entity of the store that is due soon, or runs here.

    Attributes:
        key: its name.
        partition: of its shard.
        index: key of the row that it was found by; "" if it was enqueued here.
        claimed_until: when its claim ends, unless it is extended.
        fence: of its run.
        holding: keeps its claim, as long as it runs though its time is up.
    """

    __slots__ = ("claimed_until", "fence", "holding", "index", "key", "partition")

    def __init__(self, key: EntityKey, partition: str, index: str) -> None:
        super().__init__(f"{key.kind} {key.id}")
        self.key = key
        self.partition = partition
        self.index = index
        self.claimed_until = 0
        self.fence = 0
        self.holding: asyncio.Task[None] | None = None


class Runner:
    """The entities of this process: those that run here, and those of its shards that are due soon.

    Attributes:
        dispatcher: says which one is next.
        reader: finds them.
    """

    def __init__(
        self,
        store: EngineStore,
        rows: GoalRows,
        kinds: Mapping[str, EntityKind[Any]],
        options: DurableOptions,
    ) -> None:
        self._rows = rows
        self._kinds = kinds
        self._options = options
        self._clock = options.clock
        self._margin_nanos = nanos_of(options.claim_margin)
        self._claim_nanos = nanos_of(options.run_timeout + options.claim_margin)
        self._pauses = Pauses(options)
        self._entries: dict[EntityKey, StoredEntry] = {}
        self._held: dict[str, int] = {}
        self._unknown: set[str] = set()
        self._damaged: set[EntityKey] = set()
        self._presence = Presence()
        self._member = self._presence.row()
        self._background: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.reader: Reader = Reader(store, rows, options, self)
        self.dispatcher: Dispatcher = Dispatcher(
            options, self._perform, allowed=self.reader.valid, left_behind=self._left_behind
        )

    def __len__(self) -> int:
        return len(self._entries)

    async def start(self) -> None:
        """Take shards, and begin to run what is due in them."""
        self.dispatcher.start()
        await self.reader.start()

    async def stop(self, grace: timedelta) -> None:
        """Begin nothing any more, wait for what runs, cancel it after a while, and give the shards back."""
        await self.reader.stop()
        await self.dispatcher.stop(grace)
        self._stopped = True
        if settling := self._settling():
            await asyncio.wait(settling, timeout=self._options.drain_timeout.total_seconds())
        await self.reader.release()
        if not any(entry.busy for entry in self._entries.values()):
            # Else something goes on that does not heed its cancellation, and its claim must not end with us.
            self._presence.end()

    async def drain(self) -> None:
        """Wait until nothing of our shards runs and nothing is due."""
        while True:
            found = await self.reader.look()
            await self.dispatcher.drain()
            if settling := self._settling():
                await asyncio.wait(settling)
            elif not found:
                return

    def _settling(self) -> list[asyncio.Task[None]]:
        """Ends of runs that are being written down on their own."""
        holding = {entry.holding for entry in self._entries.values()}
        return [task for task in self._background if task not in holding]

    def _now(self) -> datetime:
        return from_nanos(self._clock.time_ns())

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def resume(self) -> None:
        """Run what was held back while the lease was in doubt."""
        self.dispatcher.resume()

    # What is in memory

    def knows(self, kind: str) -> bool:
        """Whether entities of a kind can be run here."""
        if kind in self._kinds:
            return True
        if kind not in self._unknown:
            self._unknown.add(kind)
            logger.warning("entities of the kind %r are left alone: it is not known here", kind)
        return False

    def is_own(self, claim: GoalClaim) -> bool:
        """Whether this process has made a claim."""
        return claim.member == self._member

    def offer(self, key: EntityKey, index: str, due: int, *, recovered: bool = False) -> bool:
        """Take an entity into memory that is due soon; whether it was not there."""
        if key in self._damaged:
            return False
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = StoredEntry(key, self._rows.partition(key), index)
            self._held[entry.partition] = self._held.get(entry.partition, 0) + 1
            entry.low = recovered
            self.dispatcher.schedule(entry, max(due, self.reader.slot()) if recovered else due)
            return True
        if not entry.busy and not recovered:
            entry.low = False
            self.dispatcher.schedule(entry, due)
        return False

    def leave_alone(self, key: EntityKey, error: Exception) -> None:
        """Run no more an entity whose rows cannot be read, and say so once."""
        if key not in self._damaged:
            self._damaged.add(key)
            logger.error("entity %s %s is left alone: %s", *key, error)

    def drop_waiting(self, key: EntityKey) -> None:
        """Forget an entity that does not run: there is nothing to do for it, or later."""
        entry = self._entries.get(key)
        if entry is not None and not entry.busy:
            self.dispatcher.unschedule(entry)
            self._drop(entry)

    def _drop(self, entry: StoredEntry) -> None:
        """Forget an entry; what there is to do for it is in the store."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
            held = self._held.get(entry.partition, 1) - 1
            self._held[entry.partition] = held
            if held <= self._options.window // 2:
                self.reader.has_room(entry.partition)

    def forget_shard(self, partition: str) -> None:
        """Forget what waits of a shard that is somebody else's now; what runs goes on, under its claims."""
        for entry in [entry for entry in self._entries.values() if entry.partition == partition]:
            if not entry.busy:
                self.dispatcher.unschedule(entry)
                del self._entries[entry.key]
        self._held.pop(partition, None)

    # Runs

    async def _perform(self, entry: Entry) -> None:
        assert isinstance(entry, StoredEntry)
        evaluation = Evaluation()
        run = Run(entry.key.id, self._now)
        try:
            await uninterrupted(self._claim(entry, run))
            if run.fence:
                await self.dispatcher.evaluator.evaluate(
                    partial(self._kinds[entry.key.kind].load, entry.key.id),
                    run,
                    evaluation,
                    # Counted from when the claim was made, not from when the store has answered.
                    entry.claimed_until - self._margin_nanos,
                    partial(self._extend, entry, run.fence),
                )
        except SerializationError as error:
            self.leave_alone(entry.key, error)
        except PersistenceError as error:
            logger.warning("entity %s could not be claimed, which is tried again: %s", entry.id, error)
        finally:
            leftover = evaluation.leftover
            if not run.fence:
                # Nothing was claimed, or nobody knows: the store knows what there is to do.
                entry.busy = False
                self._drop(entry)
            elif leftover is None or leftover.done():
                await uninterrupted(self._settle(entry, run, evaluation))
            else:
                entry.holding = entry.holding or self._spawn(self._hold(entry, run.fence))
                self.dispatcher.outlast(leftover, lambda: self._spawn(self._settle(entry, run, evaluation)))

    async def _claim(self, entry: StoredEntry, run: Run) -> None:
        """Claim an entity for a run, which gets its fence; it keeps 0 if there is nothing to run."""
        refused = missing = False

        def claim(row: GoalRow | None) -> GoalRow | None:
            nonlocal refused, missing
            now = self._clock.time_ns()
            missing = row is None
            if row is None:
                return None
            entry.claimed_until = now + self._claim_nanos
            new = _life.claimed(row, now, entry.claimed_until, self._member, self._options.maximum_attempts)
            refused = new is None or new is row or not new.HasField("claim")
            return new

        row, _ = await self._rows.change(entry.key, claim)
        if missing or refused or row is None:
            if missing and self._options.metrics is not None:
                self._options.metrics.missing(self._options.name)
            if row is not None and row.HasField("death"):
                logger.warning("entity %s is given up: %s", entry.id, row.death.error)
            if entry.index:
                await self._rows.remove_stray(entry.key, entry.index)
            return
        entry.failures, entry.tries, entry.fence = row.failures, row.tries, row.fence
        run.attempt, run.fence = row.tries + 1, row.fence

    async def _extend(self, entry: StoredEntry, fence: int, duration: timedelta) -> None:
        """Let a claim last until a run of this length is over.

        Raises:
            ClaimLostError: somebody else runs the entity.
        """
        until = self._clock.time_ns() + nanos_of(duration + self._options.claim_margin)
        await uninterrupted(self._change_claim(entry, fence, until))

    async def _change_claim(self, entry: StoredEntry, fence: int, until: int) -> None:
        await self._rows.change(entry.key, lambda row: _life.extended(row, fence, until))

    async def _hold(self, entry: StoredEntry, fence: int) -> None:
        """Keep a claim as long as a call in a thread goes on."""
        while True:
            await sleep_for(self._clock, self._claim_nanos // 3, asyncio.get_running_loop().create_future())
            try:
                await self._change_claim(entry, fence, self._clock.time_ns() + self._claim_nanos)
            except PersistenceError as error:
                logger.warning("the claim of entity %s could not be extended: %s", entry.id, error)
            except ClaimLostError:
                return

    def _left_behind(self, entry: Entry) -> None:
        assert isinstance(entry, StoredEntry)
        entry.holding = entry.holding or self._spawn(self._hold(entry, entry.fence))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _settle(self, entry: StoredEntry, run: Run, evaluation: Evaluation) -> None:
        """Write down how a run has ended, and what follows."""
        if entry.holding is not None:
            entry.holding.cancel()
        now = self._clock.time_ns()
        verdict: Verdict | None = None
        due: int | None = entry.due
        if evaluation.finished:
            verdict, pause = self._pauses.judge(entry, evaluation.error)
            wanted = run.wanted_again
            dues = [now + pause] if verdict is Verdict.RETRY else []
            dues += [] if wanted is None else [due_after(now, wanted)]
            due = min(dues, default=None)
        change = partial(
            _life.settled,
            fence=run.fence,
            verdict=verdict,
            due=due,
            failures=entry.failures,
            tries=entry.tries,
            error="" if evaluation.error is None else _text(evaluation.error),
            now=now,
        )
        row: GoalRow | None = None
        try:
            row = await self._write(entry, change)
        except ClaimLostError as error:
            logger.warning("entity %s: %s", entry.id, error)
        except Exception:  # noqa: BLE001 - it is logged, with its traceback
            logger.exception("the end of a run of entity %s cannot be written down", entry.id)
        entry.busy = False
        self._drop(entry)
        if verdict is not None:
            self._pauses.tell(entry, verdict, evaluation.error)
        if row is not None and row.due_nanos:
            self.scheduled(entry.key, row.due_nanos)

    def scheduled(self, key: EntityKey, due: int) -> None:
        """An entity is due at a time: take it up, if that is soon, or tell whoever runs its shard."""
        partition = self._rows.partition(key)
        if not self.reader.owns(partition):
            self.reader.notify(partition)
        elif due <= self.reader.horizon and self.knows(key.kind):
            self.offer(key, "", due)

    async def _write(
        self, entry: StoredEntry, change: Callable[[GoalRow | None], GoalRow | None]
    ) -> GoalRow | None:
        """Write, and do it again while the store does not answer."""
        doubtful = False
        while True:
            try:
                row, _ = await self._rows.change(entry.key, change)
            except ClaimLostError:
                if doubtful:
                    # It was written, but for the answer.
                    return None
                raise
            except PersistenceError as error:
                doubtful = True
                if self._stopped:
                    raise
                logger.warning("the end of a run of %s is not written yet: %s", entry.id, error)
                await sleep_for(
                    self._clock,
                    nanos_of(self._options.poll_interval),
                    asyncio.get_running_loop().create_future(),
                )
            else:
                return row


def _text(error: Exception) -> str:
    text = error_text(error)[:_MAX_ERROR_TEXT]
    # A file name that is no UTF-8 comes with surrogates, which protobuf refuses.
    return text.encode(errors="backslashreplace").decode()
