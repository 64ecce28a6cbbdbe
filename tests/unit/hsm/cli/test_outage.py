"""A database that is away is waited for, and said to be away once."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console

from hsm.cli._cadence import Cadence
from hsm.cli._errors import CommandError
from hsm.cli._outage import Outage
from hsm.errors import CommitOutcomeUnknownError, StorageUnavailableError
from persistence import StoreBrokenError, StoreUnavailableError


class Failing:
    """A call that fails in some ways, one after the other, and then works."""

    def __init__(self, *errors: Exception) -> None:
        self._errors: Iterator[Exception] = iter(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        for error in self._errors:
            raise error
        return "done"


def outage(patience: float) -> tuple[Outage, io.StringIO]:
    text = io.StringIO()
    return Outage(patience, Console(file=text, width=200)), text


async def test_calls_go_on_when_the_database_is_back() -> None:
    waiting, text = outage(60)
    calls = [
        Failing(StoreUnavailableError("down"), StorageUnavailableError("down")),
        Failing(CommitOutcomeUnknownError("unknown")),
    ]
    assert await asyncio.gather(*(waiting.outlast(call) for call in calls)) == ["done", "done"]
    assert [call.calls for call in calls] == [3, 2]
    lines = text.getvalue().splitlines()
    assert lines[0] == "database: down; waiting up to 60 s for it"
    assert lines[1] == "database: it answers again"


async def test_all_who_wait_give_up_with_the_same_error() -> None:
    waiting, _ = outage(0)
    calls = [Failing(StoreUnavailableError(f"down {number}")) for number in range(3)]
    errors = await asyncio.gather(*(waiting.outlast(call) for call in calls), return_exceptions=True)
    assert {type(error) for error in errors} == {CommandError}
    assert {str(error) for error in errors} == {
        "the database was away for 0 s: down 0; run the same command again to go on"
    }


async def test_store_that_broke_is_not_waited_for() -> None:
    waiting, text = outage(60)
    translated = StorageUnavailableError("broken")
    translated.__cause__ = StoreBrokenError("broken")
    for error in (StoreBrokenError("broken"), translated):
        with pytest.raises(type(error)):
            await waiting.outlast(Failing(error))
    assert not text.getvalue()


async def test_expensive_work_is_done_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 4.9, 5.0, 5.0, 7.0, 106.9, 107.1])
    # Not the module's own function, which the event loop needs.
    monkeypatch.setattr("hsm.cli._cadence.time", SimpleNamespace(monotonic=lambda: next(times)))

    async def work() -> None:
        """Takes from 5.0 to 7.0."""

    cadence = Cadence(5)
    assert (cadence.due, cadence.due) == (False, True)
    await cadence.do(work)
    assert (cadence.due, cadence.due) == (False, True)
