"""A client of one process: asks its engine for one thing after the other, and keeps a record of the answers."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

from hsm import ExecutionKey, Node, Ref
from hsm.engine import ConflictPolicy, Engine, ReusePolicy, method
from hsm.errors import (
    CommitConflictError,
    CommitOutcomeUnknownError,
    DuplicateRequestError,
    ExecutionAlreadyStartedError,
    ExecutionClosedError,
    ExecutionNotFoundError,
    ExecutionRunningError,
    StaleReferenceError,
    StateMachineAlreadyExistsError,
    StateMachineNotFoundError,
    StorageUnavailableError,
)
from hsm.executor import AccessType
from hsm.machine import MachineType
from tests.simulation.ledger import ROOT, Ledger, append, child_key, lines_of
from tests.simulation.loop import Process
from tests.simulation.records import Outcome, Record, Records
from tests.simulation.world import NAMESPACE, World

__all__ = ["Client"]

# The store has said no, or was not asked: nothing was written.
_REFUSALS: Final = (
    CommitConflictError,
    ExecutionAlreadyStartedError,
    ExecutionClosedError,
    ExecutionNotFoundError,
    ExecutionRunningError,
    StaleReferenceError,
    StateMachineAlreadyExistsError,
    StateMachineNotFoundError,
    StorageUnavailableError,
)
_ROOT: Final = MachineType(ROOT, "root")


@method(int)
def tell(root: Node, mark: str) -> int:
    """Write a line, and say which one it is."""
    append(f"did {mark} {{}} -")(root)
    return len(root.data(Ledger).lines) - 1


class PlannedError(Exception):
    """An update's own reason to fail."""


class Client:
    """Works on some executions through one engine."""

    def __init__(
        self,
        number: int,
        engine: Engine,
        process: Process,
        world: World,
        records: Records,
        ids: list[str],
        chance: random.Random,
        trace: Callable[..., None],
    ) -> None:
        self._number = number
        self._engine = engine
        self._process = process
        self._world = world
        self._records = records
        self._ids = ids
        self._chance = chance
        self._trace = trace
        self._count = 0

    async def work(self, requests: int) -> None:
        """Ask for so many things."""
        chance = self._chance
        choices: list[Callable[[], Awaitable[None]]] = [
            *[self._update] * 10,
            self._update_in_block,
            *[self._read] * 3,
            *[self._start] * 3,
            *[self._update_with_start] * 2,
            *[self._pause] * 2,
            *[self._resume] * 3,
            self._cancel,
            *[self._signal] * 2,
            *[self._call] * 2,
            self._terminate,
            self._delete,
            self._close,
            self._wait,
            self._replay,
            self._count_open,
        ]
        for number in range(requests):
            await asyncio.sleep(chance.choice([0, 0, 0.005, 0.1, 1, 4]))
            await (self._start if not number else chance.choice(choices))()

    # What is common to all

    def _mark(self) -> str:
        self._count += 1
        return f"m{self._number}.{self._count}"

    def _key(self, run: str = "") -> ExecutionKey:
        return ExecutionKey(NAMESPACE, self._chance.choice(self._ids), run)

    async def _ask(self, record: Record, ask: Awaitable[Any]) -> Any:
        """Wait for an answer, and note it; None if it is none. The same record may be asked for again."""
        again, before = bool(record.ended), record.outcome
        record.asked += 1
        self._trace(self._process, "asks", record.kind, record.mark)
        answer: Any = None
        try:
            answer = await ask
            outcome, words = Outcome.DONE, "done"
        except PlannedError:
            outcome, words = Outcome.REFUSED, "planned"
        except TimeoutError:
            # Of `wait`, which changes nothing.
            outcome, words = Outcome.REFUSED, "timeout"
        except CommitOutcomeUnknownError:
            outcome, words = Outcome.OPEN, "unknown"
        except DuplicateRequestError:
            outcome, words = Outcome.DONE, "done before"
            if not again:
                self._world.wrong.append(
                    f"{record.kind} {record.mark} was asked for once, and called a duplicate"
                )
        except _REFUSALS as error:
            # The first time it may have been carried out all the same.
            outcome, words = Outcome.OPEN if again else Outcome.REFUSED, type(error).__name__
        except Exception as error:  # noqa: BLE001 - it is told with its traceback
            outcome, words = Outcome.OPEN, type(error).__name__
            self._world.wrong.append(f"{record.kind} {record.mark} has raised {_unexpected(error)}")
        if before is Outcome.DONE:
            # It was acknowledged once, which counts.
            self._trace(self._process, "ends", record.kind, record.mark, words, "again")
        else:
            self._records.end(record, outcome)
            self._trace(self._process, "ends", record.kind, record.mark, words)
        return answer

    def _is_settled(self, record: Record) -> bool:
        """Whether to ask no more; the same request is carried out once, however often it is asked for."""
        if record.outcome is Outcome.DONE:
            return self._chance.random() < 0.7
        return record.outcome is Outcome.REFUSED

    async def _current(self) -> Ref | None:
        """The current run of one of the ids, as far as that can be told."""
        try:
            return Ref((await self._engine.describe(self._key())).info.key)
        except (*_REFUSALS, CommitOutcomeUnknownError):
            return None

    # Requests

    async def _start(self) -> None:
        mark = self._mark()
        record = self._records.begin("start", mark)
        chance = self._chance
        conflict = chance.choice(
            [ConflictPolicy.FAIL, ConflictPolicy.USE_EXISTING, ConflictPolicy.TERMINATE_EXISTING]
        )
        if conflict is ConflictPolicy.TERMINATE_EXISTING and chance.random() < 0.7:
            conflict = ConflictPolicy.FAIL
        reuse = chance.choice(list(ReusePolicy))
        tasks = [self._world.new_task(f"t{mark}.{number}") for number in range(chance.choice([0, 1, 2]))]
        key, history = self._key(), chance.random() < 0.2
        for _ in range(3):
            ref = await self._ask(
                record,
                self._engine.start(
                    key,
                    Ledger([f"start {mark}"]),
                    machine_type=_ROOT,
                    request_id=mark,
                    on_start=append(f"did {mark}s {{}} -", *tasks),
                    conflict=conflict,
                    reuse=reuse,
                    history=history,
                ),
            )
            if ref is not None:
                record.run = ref.execution.run_id
            if self._is_settled(record):
                return

    async def _update(self) -> None:
        chance = self._chance
        mark = self._mark()
        record = self._records.begin("update", mark)
        kind = chance.choice(
            ["plain", "plain", "ask", "ask", "ask", "child", "child", "add", "add", "drop", "end", "fail"]
        )
        name = chance.choice(["x", "y", "x/z"])
        tasks = [self._world.new_task(f"t{mark}.{number}") for number in range(chance.choice([1, 1, 2]))]
        if kind == "plain":
            tasks = []

        def change(root: Node) -> str:
            run = root.data(Ledger).lines[0]
            path = _path(name)
            if kind == "child":
                append(f"did {mark} {{}} {name}")(root)
                append(f"did {mark} {{}} -", *tasks)(root.child(path))
            elif kind == "add":
                root.child(path[:-1]).add_child(path[-1], Ledger([f"born {mark}"]))
                append(f"did {mark} {{}} +{name}")(root)
                append(f"did {mark} {{}} -", *tasks)(root.child(path))
            elif kind == "drop":
                root.child(path[:-1]).delete_child(path[-1])
                append(f"did {mark} {{}} !{name}", *tasks)(root)
            elif kind == "end":
                append(f"did {mark} {{}} ~{name}")(root)
                append("end")(root.child(path))
            else:
                append(f"did {mark} {{}} -", *tasks)(root)
            if kind == "fail":
                raise PlannedError
            return run

        await self._ask(record, self._engine.update(Ref(self._key()), change))

    async def _update_in_block(self) -> None:
        mark = self._mark()
        record = self._records.begin("update", mark)
        key = self._key()
        pause = self._chance.choice([0, 0.01, 1])
        task = self._world.new_task(f"t{mark}.0")

        async def block() -> None:
            async with self._engine.access(Ref(key), AccessType.WRITE) as root:
                append(f"did {mark} {{}} -", task)(root)
                await asyncio.sleep(pause)

        await self._ask(record, block())

    async def _read(self) -> None:
        key = self._key()
        record = self._records.begin("read", self._mark())
        lines = await self._ask(record, self._engine.read(Ref(key), lines_of))
        if lines is not None:
            self._records.reads.append((record.began, tuple(lines)))

    async def _update_with_start(self) -> None:
        mark = self._mark()
        record = self._records.begin("update", mark)
        key = self._key()
        for _ in range(3):
            await self._ask(
                record,
                self._engine.update_with_start(
                    key,
                    Ledger([f"start {mark}"]),
                    append(f"did {mark} {{}} -"),
                    machine_type=_ROOT,
                    request_id=mark,
                    reuse=self._chance.choice(list(ReusePolicy)),
                ),
            )
            if self._is_settled(record):
                return

    async def _on_current(
        self, kind: str, ask: Callable[[ExecutionKey, str], Awaitable[None]]
    ) -> Record | None:
        """Ask for something that is about one run."""
        ref = await self._current()
        if ref is None:
            return None
        mark = self._mark()
        record = self._records.begin(kind, mark, ref.execution.run_id)
        await self._ask(record, ask(ref.execution, mark))
        return record

    async def _pause(self) -> None:
        # Of the root, so that its executors can be asked whether they may run.
        record = await self._on_current("pause", lambda key, _: self._engine.pause(key))
        if record is None or record.outcome is not Outcome.DONE:
            return
        others = [other for other in self._records.all if other.kind == "resume" and other.run == record.run]
        # A resume that is not over, or that began meanwhile, may have come later.
        alone = all(other.outcome is not Outcome.OPEN and other.ended < record.began for other in others)
        if alone and self._world.clock.time_ns() > self._process.slow_until:
            self._world.paused.setdefault(self._process, {})[record.run] = self._world.now()

    async def _resume(self) -> None:
        def ask(key: ExecutionKey, _: str) -> Awaitable[None]:
            for runs in self._world.paused.values():
                runs.pop(key.run_id, None)
            return self._engine.resume(key)

        await self._on_current("resume", ask)

    async def _cancel(self) -> None:
        ref = await self._current()
        if ref is None:
            return
        mark = self._mark()
        record = self._records.begin("update", mark, ref.execution.run_id)
        for _ in range(3):
            await self._ask(record, self._engine.cancel(ref.execution, mark, request_id=mark))
            if self._is_settled(record):
                return

    async def _signal(self) -> None:
        ref = await self._current()
        if ref is None:
            return
        mark = self._mark()
        record = self._records.begin("update", mark, ref.execution.run_id)
        task = self._world.new_task(f"t{mark}.0")
        for _ in range(3):
            change = append(f"did {mark} {{}} -", task)
            await self._ask(record, self._engine.signal(ref, change, request_id=mark))
            if self._is_settled(record):
                return

    async def _call(self) -> None:
        ref = await self._current()
        if ref is None:
            return
        mark = self._mark()
        record = self._records.begin("update", mark, ref.execution.run_id)
        for _ in range(3):
            answer = await self._ask(record, self._engine.call(ref, tell(mark), request_id=mark))
            if answer is not None:
                self._records.answers.append((mark, answer))
            if self._is_settled(record):
                return

    async def _terminate(self) -> None:
        await self._on_current("terminate", lambda key, mark: self._engine.terminate(key, request_id=mark))

    async def _delete(self) -> None:
        force = self._chance.random() < 0.5
        await self._on_current("delete", lambda key, _: self._engine.delete(key, force=force))

    async def _close(self) -> None:
        mark = self._mark()
        record = self._records.begin("update", mark)

        def change(root: Node) -> None:
            append(f"did {mark} {{}} -")(root)

            def close(ledger: Ledger) -> None:
                ledger.closed = True

            root.transition(Ledger, close)

        await self._ask(record, self._engine.update(Ref(self._key()), change))

    async def _wait(self) -> None:
        key = self._key()
        wanted = self._chance.randrange(2, 6)
        record = self._records.begin("wait", self._mark())

        def until(node: Node) -> bool:
            return len(node.data(Ledger).lines) >= wanted

        ref = await self._ask(record, self._engine.wait(Ref(key), until, timeout=timedelta(seconds=5)))
        if ref is not None and not ref.execution.run_id:
            self._world.wrong.append("wait has returned a reference without a run")

    async def _replay(self) -> None:
        record = self._records.begin("replay", self._mark())

        async def replay() -> None:
            letters = [letter async for letter in self._engine.dead_letters()]
            if letters:
                letter = self._chance.choice(letters)
                self._records.replayed.add(letter.task_id)
                await self._engine.replay(letter)

        await self._ask(record, replay())

    async def _count_open(self) -> None:
        record = self._records.begin("count", self._mark())
        await self._ask(record, self._engine.count(namespace=NAMESPACE))


def _path(name: str) -> tuple[Any, ...]:
    return tuple(child_key(part) for part in name.split("/"))


def _unexpected(error: Exception) -> str:
    """An error with the last lines of its traceback."""
    return "".join(traceback.format_exception(error)[-4:])
