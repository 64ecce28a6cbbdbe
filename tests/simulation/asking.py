"""What is common to all requests of a client: it asks, and keeps a record of the answer."""

from __future__ import annotations

import random
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from hsm import ExecutionKey, Ref
from hsm.engine import Engine
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
from tests.simulation.loop import Process
from tests.simulation.records import Outcome, Record, Records
from tests.simulation.world import NAMESPACE, World

__all__ = ["Asking", "PlannedError"]

AnswerT = TypeVar("AnswerT")

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


class PlannedError(Exception):
    """An update's own reason to fail."""


class Asking:
    """Asks one engine."""

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
        return await self._told(self._current_run())

    async def _current_run(self) -> Ref:
        return Ref((await self._engine.describe(self._key())).info.key)

    @staticmethod
    async def _told(answer: Awaitable[AnswerT]) -> AnswerT | None:
        """What the engine tells; None if it does not."""
        try:
            return await answer
        except (*_REFUSALS, CommitOutcomeUnknownError):
            return None

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


def _unexpected(error: Exception) -> str:
    """An error with the last lines of its traceback."""
    return "".join(traceback.format_exception(error)[-4:])
