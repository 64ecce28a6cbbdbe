"""`hsm fsm serve` in a process of its own, for tests: started, signalled, killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from tests.support.fsm.service import TIME_LIMIT_SECONDS, client_of

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub


@attrs.define
class ServeProcess:
    """A running service."""

    process: Process
    port: int
    log: Path

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()

    async def ended(self) -> int:
        """The exit status, once it has ended."""
        return await asyncio.wait_for(self.process.wait(), TIME_LIMIT_SECONDS)

    async def stop(self) -> int:
        """Ask it to end."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text()


async def start_serving(
    *arguments: str | Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> ServeProcess:
    """Start the service; returns when it serves."""
    log = folder / "serve.log"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hsm.cli",
            "fsm",
            "serve",
            *(("--listen", "127.0.0.1:0") if "--listen" not in arguments else ()),
            "--insecure",
            *map(str, arguments),
            cwd=folder,
            stdout=PIPE,
            stderr=errors,
            env=os.environ | (environment or {}),
        )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), TIME_LIMIT_SECONDS)).decode()
    assert line.startswith("serving on "), f"{line}\n{log.read_text()}"
    return ServeProcess(process, int(line.rpartition(":")[2]), log)


@asynccontextmanager
async def serving_process(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[ServeProcess, StatemachineServiceAsyncStub]]:
    """A service and a client of it; killed at the end unless it has ended by then."""
    served = await start_serving(*arguments, folder=folder, environment=environment)
    try:
        async with client_of(served.port) as client:
            yield served, client
    finally:
        if served.process.returncode is None:
            served.kill()
            await served.ended()
