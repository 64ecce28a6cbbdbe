"""Showing how far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hsm.cli._tally import Tally

__all__ = ["show_progress"]

_BAR_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 2.0


@asynccontextmanager
async def show_progress(console: Console, tally: Tally) -> AsyncGenerator[None, None]:
    """Show the tally as it changes, until the block ends."""
    shown = asyncio.create_task(
        _show_bar(console, tally) if console.is_terminal else _show_lines(console, tally)
    )
    try:
        yield
    finally:
        shown.cancel()
        with suppress(asyncio.CancelledError):
            await shown


async def _show_bar(console: Console, tally: Tally) -> None:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=None)
        while True:
            done = tally.total - tally.unfinished
            text = f"{tally.all_failed} failed, {tally.retries} retries"
            progress.update(bar, completed=done, total=tally.total or None, description=text)
            progress.refresh()
            await asyncio.sleep(_BAR_SECONDS)


async def _show_lines(console: Console, tally: Tally) -> None:
    shown = ""
    while True:
        await asyncio.sleep(_LINE_SECONDS)
        text = (
            f"{tally.all_confirmed} of {tally.total} delivered, {tally.all_failed} failed,"
            f" {tally.unfinished} waiting, {tally.retries} retries"
        )
        if text != shown:
            console.print(text, highlight=False)
            shown = text
