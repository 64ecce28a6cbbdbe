"""Deliveries for tests: a receiver in the test's process, and the command line in one of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TIME_LIMIT_SECONDS = 60


async def confirm(_: web.Request) -> web.StreamResponse:
    return web.Response()


class Receiver:
    """A receiver; what it answers is the test's choice.

    Attributes:
        handler: answers.
        urls: one for each of its ports, so that there are several destinations.
        ids: how often each delivery came.
        most: requests at the same time, at most, by port.
        came: set with each request.
    """

    def __init__(self) -> None:
        self.handler: Handler = confirm
        self.urls: list[str] = []
        self.ids: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.came = asyncio.Event()
        self._open: Counter[str] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.ids[request.path.lstrip("/")] += 1
        self.came.set()
        self._open[request.host] += 1
        self.most[request.host] = max(self.most[request.host], self._open[request.host])
        try:
            return await self.handler(request)
        finally:
            self._open[request.host] -= 1


@asynccontextmanager
async def receiver(ports: int = 1) -> AsyncIterator[Receiver]:
    """A receiver on some ports, until the block ends."""
    opened = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", opened.handle)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    for _ in range(ports):
        await web.TCPSite(runner, "127.0.0.1", 0).start()
    opened.urls = [f"http://127.0.0.1:{address[1]}" for address in runner.addresses]
    try:
        yield opened
    finally:
        await runner.cleanup()


@attrs.frozen
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


async def start_hsm(*arguments: str | Path, folder: Path) -> Process:
    """Start `hsm` in a folder."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hsm.cli", *map(str, arguments), cwd=folder, stdout=PIPE, stderr=PIPE
    )


async def ended(process: Process) -> Result:
    """Wait for the end of a command."""
    out, err = await asyncio.wait_for(process.communicate(), TIME_LIMIT_SECONDS)
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


async def hsm(*arguments: str | Path, folder: Path) -> Result:
    """Run `hsm` in a folder to its end."""
    return await ended(await start_hsm(*arguments, folder=folder))


def write_lines(file: Path, *lines: dict[str, Any] | str | bytes) -> Path:
    """Write a deliveries file."""
    with file.open("wb") as out:
        for line in lines:
            if isinstance(line, bytes):
                out.write(line + b"\n")
            else:
                out.write((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")
    return file
