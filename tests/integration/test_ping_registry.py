"""The whole ping-registry story: a registry, three servers and an administrator as processes, some of them killed."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import attrs
import pytest
from rich.console import Console

import persistence
from hsm.cli import _app, _ping_registry
from hsm.cli._ping_registry import NAMESPACE
from hsm.components.ping_registry import (
    Coordinator,
    ParticipantOptions,
    RegistryDaemon,
    ServerDaemon,
    StateCode,
    Workflows,
    summarized,
)
from persistence.journal import EventId, Journal
from tests.support.deliveries import TIME_LIMIT_SECONDS, Result, ended, start_hsm
from tests.support.journals import database_url, world_of
from tests.support.servers import Server

KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.server)]
SERVERS = ("s1", "s2", "s3")


@attrs.define
class Participant:
    """A process that runs until it is killed.

    Attributes:
        told: what it has printed so far.
    """

    process: asyncio.subprocess.Process
    told: list[str] = attrs.field(factory=list)

    async def until(self, text: str) -> None:
        """Return when it has printed a line with this text."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIME_LIMIT_SECONDS):
            while not (self.told and text in self.told[-1]):
                line = (await self.process.stdout.readline()).decode()
                assert line, f"it ended before it said {text!r}: {self.told}"
                self.told.append(line.rstrip())

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()


@attrs.define
class Scene:
    """A database, the processes on it, and an administrator in this process, because a process takes its time."""

    url: str
    folder: Path
    stack: AsyncExitStack

    async def start(self, command: str, *arguments: str) -> Participant:
        process = await start_hsm(
            "ping-registry", command, "--db", self.url, "reg", *arguments, folder=self.folder
        )
        self.stack.push_async_callback(_put_to_an_end, process)
        return Participant(process)

    async def registry(self) -> Participant:
        return await self._ready("serve-registry", "--window", "1", "--interval", "0.5")

    async def server(self, name: str) -> Participant:
        return await self._ready("serve-server", name, "--interval", "0.5")

    async def _ready(self, command: str, *arguments: str) -> Participant:
        participant = await self.start(command, *arguments)
        await participant.until("ready")
        return participant

    async def begin(self) -> UUID:
        out = io.StringIO()
        status = await _ping_registry.begin(
            _console(out), self.url, NAMESPACE, "reg", workflow=None, expected=SERVERS, request_id=""
        )
        assert status == 0
        return UUID(value("workflow", out.getvalue()))

    async def get(self, workflow: UUID, wait: float | None = None) -> tuple[int, str]:
        out = io.StringIO()
        status = await _ping_registry.get(
            _console(out), self.url, NAMESPACE, "reg", workflow=workflow, wait=wait
        )
        return status, out.getvalue()

    async def commit(self, workflow: UUID, vid: str | None) -> str:
        out = io.StringIO()
        version = None if vid is None else EventId.parse(vid)
        status = await _ping_registry.commit(
            _console(out), self.url, NAMESPACE, "reg", workflow=workflow, vid=version
        )
        assert status == 0
        return value("workflowVid", out.getvalue())

    async def status(self) -> str:
        out = io.StringIO()
        assert await _ping_registry.status(_console(out), self.url, NAMESPACE, "reg") == 0
        return out.getvalue()

    async def until_servers_have_pinged(self, workflow: UUID) -> None:
        """Return when each of the servers has sent all its pings."""
        async with (
            asyncio.timeout(TIME_LIMIT_SECONDS),
            persistence.connect(self.url) as store,
            Journal(store, NAMESPACE) as journal,
            journal.subscribe(workflow) as subscription,
        ):
            workflows = Workflows(journal)
            while sum(ping.sender in SERVERS for ping in (await workflows.find(workflow)).pings) < 9:
                await subscription.wait()


def _console(out: io.StringIO) -> Console:
    return Console(file=out, width=300)


async def _put_to_an_end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


@asynccontextmanager
async def scene_of(url: str, folder: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(url, folder, stack)


def value(name: str, out: str) -> str:
    (found,) = re.findall(rf"^{name}: (\S.*?)(?:  #.*)?$", out, re.MULTILINE)
    return str(found)


def pings(out: str) -> list[str]:
    """Who has sent which ping: what stands behind the time and the code."""
    return re.findall(r"^- \S+Z 0 \w+: (\w+ ping \d)$", out, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
async def test_story_ends_summarised_and_committed_whoever_is_killed(
    kind: str, tmp_path: Path, server_of: Callable[[str], Server]
) -> None:
    async with scene_of(database_url(kind, tmp_path, server_of), tmp_path) as scene:
        registry, _, s2, s3 = await asyncio.gather(scene.registry(), *map(scene.server, SERVERS))

        # Everybody is there in the end, though the second server and the registry are killed after a ping.
        workflow = await scene.begin()
        waiting = await scene.start("get", "--workflow", str(workflow), "--wait", str(TIME_LIMIT_SECONDS))
        await asyncio.gather(s2.until("ping 1"), registry.until("ping 1"))
        await asyncio.gather(s2.kill(), registry.kill())
        await scene.server("s2")
        await scene.until_servers_have_pinged(workflow)
        await scene.registry()
        first = await ended(waiting.process)
        print(first.out)
        assert first.status == 0, first.err
        assert value("statusMessage", first.out) == "{ totalCount: 12, errorCount: 0 }"
        senders = ("registry", *SERVERS)
        assert sorted(pings(first.out)) == sorted(
            f"{sender} ping {k}" for sender in senders for k in (1, 2, 3)
        )

        # One of them stays away.
        await s3.kill()
        other = await scene.begin()
        status, second = await scene.get(other, wait=TIME_LIMIT_SECONDS)
        print(second)
        assert status == 1
        assert value("statusCode", second) == "100"
        assert "missing: s3" in value("statusMessage", second)

        vid = value("workflowVid", first.out)
        committed = await scene.commit(workflow, vid)
        await scene.commit(other, None)
        assert await scene.commit(workflow, vid) == committed
        gathered = [await scene.get(id_) for id_ in (workflow, other)]
        assert [(status, value("statusCode", out)) for status, out in gathered] == [(0, "0"), (1, "1")]
        listed = (await scene.status()).splitlines()
        print(*listed, sep="\n")
        assert [line.split()[1::2] for line in listed] == [["completed", "terminated"]] * 2


@pytest.mark.parametrize("kind", ["memory", pytest.param("valkey", marks=pytest.mark.server)])
async def test_participants_in_one_process_meet_on_any_store(
    kind: str, tmp_path: Path, server_of: Callable[[str], Server]
) -> None:
    moment = timedelta(milliseconds=20)
    options = ParticipantOptions(interval=moment, window=15 * moment)
    async with (
        world_of(database_url(kind, tmp_path, server_of)) as world,
        asyncio.timeout(TIME_LIMIT_SECONDS),
    ):
        participants = [
            RegistryDaemon(world.journal(), "reg", options),
            *(ServerDaemon(world.journal(), "reg", name, options) for name in SERVERS),
        ]
        tasks = [asyncio.create_task(participant.run()) for participant in participants]
        admin = Coordinator(world.journal(), "reg")
        workflow = (await admin.begin(expected_servers=SERVERS)).workflow_id
        gathered = await admin.get(workflow, wait=True)
        await admin.commit(workflow, gathered.state.vid)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert (gathered.state.summary.code, gathered.message) == summarized(gathered.state)
        assert gathered.state.num_pings >= 3
        assert (await admin.get(workflow)).state.state_code is StateCode.TERMINATED


def test_commands_tell_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = "00000000-0000-0000-0000-000000000001"

    def run(command: str, *arguments: str) -> Result:
        url = f"sqlite:///{tmp_path / 'state.db'}"
        monkeypatch.setattr(sys, "argv", ["hsm", "ping-registry", command, "--db", url, "reg", *arguments])
        status = _app.run()
        return Result(status, *capsys.readouterr())

    begun = run("begin", "--workflow", unknown)
    cases = {
        "begun again": (run("begin", "--workflow", unknown), 0, ""),
        "other servers": (run("begin", "--workflow", unknown, "--expect", "s1"), 2, "ExpectedServers"),
        "early": (run("commit", "--workflow", unknown, "--no-vid"), 2, "conflicts with aggregate state"),
        "stale": (run("commit", "--workflow", unknown, "--vid", "0" * 26), 2, "version"),
        "no version": (run("commit", "--workflow", unknown), 2, "--no-vid"),
        "bad version": (run("commit", "--workflow", unknown, "--vid", "x"), 2, "--vid"),
        "no summary": (run("get", "--workflow", unknown, "--wait", "0.1"), 2, "no summary"),
        "unknown": (run("get", "--workflow", unknown[:-1] + "2"), 2, "uninitialized"),
        "active": (run("get", "--workflow", unknown), 0, ""),
        "listed": (run("status"), 0, ""),
    }

    assert {name: result.status for name, (result, _, _) in cases.items()} == {
        name: status for name, (_, status, _) in cases.items()
    }
    assert [name for name, (result, _, text) in cases.items() if text not in result.err] == []
    assert [name for name, (result, _, _) in cases.items() if "Traceback" in result.err] == []
    assert cases["begun again"][0].out == begun.out
    assert value("statusCode", cases["active"][0].out) == "101"
    assert cases["listed"][0].out.split()[:2] == [unknown, "active"]
