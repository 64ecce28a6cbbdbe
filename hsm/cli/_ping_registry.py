"""The ping-registry workflow from the command line: participants that run for long, and the administrator."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from rich.console import Console

from hsm.cli._database import open_store, refuse_memory
from hsm.cli._errors import CommandError, one_line
from hsm.components.ping_registry import (
    Coordinator,
    Gathered,
    ParticipantOptions,
    PingRegistryError,
    RegistryDaemon,
    ServerDaemon,
    StateCode,
)
from persistence.journal import NO_VC, EventId, Journal

__all__ = ["NAMESPACE", "begin", "commit", "get", "serve_registry", "serve_server", "status"]

NAMESPACE: Final = "ping-registry"
"""Where the workflows are kept among the histories of a database."""

_FAILED: Final = 1


@asynccontextmanager
async def _journal(url: str, namespace: str, *, create: bool = False) -> AsyncGenerator[Journal, None]:
    refuse_memory(url)
    async with open_store(url, create=create) as store, Journal(store, namespace) as journal:
        yield journal


async def serve_registry(
    out: Console, url: str, namespace: str, registry: str, *, window: float, pings: int, interval: float
) -> int:
    """Be the daemon of a registry until the process is asked to end."""
    options = ParticipantOptions(
        pings=pings,
        interval=timedelta(seconds=interval),
        window=timedelta(seconds=window),
        tell=lambda text: _say(out, text),
    )
    async with _journal(url, namespace, create=True) as journal:
        return await _serve(out, f"registry {registry}", RegistryDaemon(journal, registry, options))


async def serve_server(
    out: Console, url: str, namespace: str, registry: str, name: str, *, pings: int, interval: float
) -> int:
    """Be a server until the process is asked to end."""
    options = ParticipantOptions(
        pings=pings, interval=timedelta(seconds=interval), tell=lambda text: _say(out, text)
    )
    async with _journal(url, namespace, create=True) as journal:
        return await _serve(out, f"server {name}", ServerDaemon(journal, registry, name, options))


async def _serve(out: Console, name: str, daemon: RegistryDaemon | ServerDaemon) -> int:
    run = asyncio.ensure_future(daemon.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, run.cancel)
    _say(out, f"{name} is ready")
    try:
        await run
    except asyncio.CancelledError:
        if not run.cancelled():
            raise
    return 0


async def begin(
    out: Console,
    url: str,
    namespace: str,
    registry: str,
    *,
    workflow: UUID | None,
    expected: tuple[str, ...],
    request_id: str,
) -> int:
    """Begin a workflow, and print its id and the versions."""
    async with _journal(url, namespace, create=True) as journal:
        coordinator = Coordinator(journal, registry)
        begun = await coordinator.begin(workflow, expected_servers=expected, request_id=request_id)
    _say(out, f"workflow: {begun.workflow_id}")
    _say(out, f"workflowIndexVid: {begun.index_vid}")
    _say(out, f"workflowVid: {begun.workflow_vid}")
    return 0


async def commit(
    out: Console, url: str, namespace: str, registry: str, *, workflow: UUID, vid: EventId | None
) -> int:
    """Accept the summary of a workflow, and print the versions."""
    async with _journal(url, namespace) as journal:
        committed = await Coordinator(journal, registry).commit(workflow, NO_VC if vid is None else vid)
    _say(out, f"workflowIndexVid: {committed.index_vid}")
    _say(out, f"workflowVid: {committed.workflow_vid}")
    return 0


async def get(
    out: Console, url: str, namespace: str, registry: str, *, workflow: UUID, wait: float | None
) -> int:
    """Print what a workflow has gathered; with `wait`, in seconds, once there is a summary or an abort."""
    async with _journal(url, namespace) as journal:
        coordinator = Coordinator(journal, registry)
        if wait is None:
            gathered = await coordinator.get(workflow)
        else:
            try:
                gathered = await coordinator.get(workflow, wait=True, timeout=timedelta(seconds=wait))
            except TimeoutError:
                raise CommandError(f"workflow {workflow} has no summary after {wait:g} s") from None
    _print_gathered(out, gathered)
    return 0 if gathered.state.summary_status.code == 0 else _FAILED


def _print_gathered(out: Console, gathered: Gathered) -> None:
    state = gathered.state
    _say(out, f"workflowVid: {state.vid}")
    _say(out, "pings:")
    for ping in state.pings:
        _say(out, f"- {_time(ping.event_id.time)} {ping.code} {ping.sender or '-'}: {ping.message}")
    if gathered.time is not None:
        _say(out, f"statusEtime: {_time(gathered.time)}")
    uncommitted = "  # uncommitted" if state.state_code is StateCode.SUMMARIZED else ""
    _say(out, f"statusCode: {int(gathered.code)}{uncommitted}")
    _say(out, f"statusMessage: {gathered.message}")


async def status(out: Console, url: str, namespace: str, registry: str) -> int:
    """List the workflows of a registry."""
    async with _journal(url, namespace) as journal:
        coordinator = Coordinator(journal, registry)
        index = await coordinator.index.find(coordinator.index_id)
        for kind, workflows in (("active", index.active), ("completed", index.completed)):
            for workflow in workflows.values():
                try:
                    gathered = await coordinator.get(workflow.workflow_id)
                    told = f"{gathered.state.state_code.name.lower()} {int(gathered.code)}"
                except PingRegistryError as error:
                    told = one_line(error)
                _say(out, f"{workflow.workflow_id} {kind} {_time(workflow.started.time)} {told}")
    return 0


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
