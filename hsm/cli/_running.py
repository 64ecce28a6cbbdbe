"""Running a command: how errors end it, and where it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Final

from rich.console import Console

from hsm.cli._errors import one_line
from hsm.errors import HSMError
from persistence.errors import PersistenceError

__all__ = ["UNUSABLE", "err", "out", "run_command", "tell"]

UNUSABLE: Final = 2
"""The exit status if the arguments or the database cannot be used."""


def run_command(command: Coroutine[None, None, int]) -> int:
    """Run a command; an error of ours ends it with one line, and anything else with a traceback."""
    try:
        return asyncio.run(command)
    except* (HSMError, PersistenceError) as group:
        for error in {str(error): error for error in _leaves(group)}.values():
            tell(error)
    return UNUSABLE


def tell(error: BaseException) -> None:
    """Say an error in one line."""
    # Client libraries put what they have to say on several lines.
    err().print(f"hsm: {one_line(error)}", markup=False, highlight=False, soft_wrap=True)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def out() -> Console:
    """Standard output, as it is now."""
    return Console()


def err() -> Console:
    """Standard error, as it is now."""
    return Console(stderr=True)
