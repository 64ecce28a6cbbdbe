"""`hsm fsm` in this process, in a thread with an event loop of its own: a process takes its time to start."""

from __future__ import annotations

import asyncio
import io
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from hsm.cli._app import run
from tests.support.deliveries import Result


async def hsm_fsm(*arguments: str, folder: Path) -> Result:
    """Run a command in a folder."""
    return await asyncio.to_thread(_run, arguments, folder)


def _run(arguments: tuple[str, ...], folder: Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch("sys.argv", ["hsm", "fsm", *arguments]),
    ):
        status = run()
    return Result(status, out.getvalue(), err.getvalue())
