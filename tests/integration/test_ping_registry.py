"""The whole ping-registry story: a registry, three servers and an administrator as processes, some of them killed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import pytest

from tests.support.deliveries import TIME_LIMIT_SECONDS, Result, ended, hsm, start_hsm
from tests.support.journals import database_url
from tests.support.servers import Server

KINDS = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.server),
    pytest.param("valkey", marks=pytest.mark.server),
]
SERVERS = ("s1", "s2", "s3")
EXPECTED = [argument for server in SERVERS for argument in ("--expect", server)]


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
    """A database, and the commands on it."""

    url: str
    folder: Path
    stack: AsyncExitStack

    async def run(self, command: str, *arguments: str) -> Result:
        return await hsm("ping-registry", command, "--db", self.url, "reg", *arguments, folder=self.folder)

    async def start(self, command: str, *arguments: str) -> Participant:
        process = await start_hsm(
            "ping-registry", command, "--db", self.url, "reg", *arguments, folder=self.folder
        )
        participant = Participant(process)
        self.stack.push_async_callback(_put_to_an_end, process)
        await participant.until("ready")
        return participant

    async def registry(self) -> Participant:
        return await self.start("serve-registry", "--window", "1", "--interval", "1")

    async def server(self, name: str) -> Participant:
        return await self.start("serve-server", name, "--interval", "0.1")

    async def begin(self) -> str:
        begun = await self.run("begin", *EXPECTED)
        assert begun.status == 0, begun.err
        return value("workflow", begun)


async def _put_to_an_end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


@asynccontextmanager
async def scene_of(url: str, folder: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(url, folder, stack)


def value(name: str, result: Result) -> str:
    (found,) = re.findall(rf"^{name}: (\S.*?)(?:  #.*)?$", result.out, re.MULTILINE)
    return str(found)


def pings(result: Result) -> list[str]:
    """Who has sent which ping: what stands behind the time and the code."""
    return re.findall(r"^- \S+Z 0 \w+: (\w+ ping \d)$", result.out, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
async def test_story_ends_summarised_and_committed_whoever_is_killed(
    kind: str, tmp_path: Path, server_of: Callable[[str], Server]
) -> None:
    async with scene_of(database_url(kind, tmp_path, server_of), tmp_path) as scene:
        registry, s1, s2, s3 = await asyncio.gather(scene.registry(), *map(scene.server, SERVERS))

        # Everybody is there in the end, though the second server and the registry are killed after a ping.
        workflow = await scene.begin()
        waiting = await start_hsm(
            "ping-registry", "get", "--db", scene.url, "reg", "--workflow", workflow, "--wait", "60",
            folder=tmp_path,
        )  # fmt: skip
        await asyncio.gather(s2.until("ping 1"), registry.until("ping 1"))
        await asyncio.gather(s2.kill(), registry.kill())
        s2 = await scene.server("s2")
        await asyncio.gather(*[server.until("ping 3") for server in (s1, s2, s3)])
        registry = await scene.registry()
        first = await ended(waiting)
        print(first.out)
        assert first.status == 0, first.err
        assert value("statusMessage", first) == "{ totalCount: 12, errorCount: 0 }"
        senders = ("registry", *SERVERS)
        assert sorted(pings(first)) == sorted(f"{sender} ping {k}" for sender in senders for k in (1, 2, 3))

        # One of them stays away.
        await s3.kill()
        other = await scene.begin()
        second = await scene.run("get", "--workflow", other, "--wait", "60")
        print(second.out)
        assert value("statusCode", second) == "100"
        assert "missing: s3" in value("statusMessage", second)

        committed = [
            await scene.run("commit", "--workflow", workflow, "--vid", value("workflowVid", first)),
            await scene.run("commit", "--workflow", other, "--no-vid"),
            await scene.run("commit", "--workflow", workflow, "--vid", value("workflowVid", first)),
        ]
        assert [result.status for result in committed] == [0, 0, 0], committed
        assert committed[2].out.splitlines()[1] == committed[0].out.splitlines()[1]
        gathered = [await scene.run("get", "--workflow", id_) for id_ in (workflow, other)]
        assert [value("statusCode", result) for result in gathered] == ["0", "1"]
        assert [result.status for result in gathered] == [0, 1]
        listed = await scene.run("status")
        print(listed.out)
        assert sorted(line.split()[0::1][1] for line in listed.out.splitlines()) == ["completed"] * 2
        assert all("terminated" in line for line in listed.out.splitlines())


async def test_commands_tell_what_is_wrong(tmp_path: Path) -> None:
    async with scene_of(f"sqlite:///{tmp_path / 'state.db'}", tmp_path) as scene:
        unknown = "00000000-0000-0000-0000-000000000001"
        begun = await scene.run("begin", "--workflow", unknown)
        results = {
            "begin": begun,
            "again": await scene.run("begin", "--workflow", unknown),
            "other servers": await scene.run("begin", "--workflow", unknown, "--expect", "s1"),
            "early": await scene.run("commit", "--workflow", unknown, "--no-vid"),
            "stale": await scene.run("commit", "--workflow", unknown, "--vid", "0" * 26),
            "no version": await scene.run("commit", "--workflow", unknown),
            "bad version": await scene.run("commit", "--workflow", unknown, "--vid", "x"),
            "no summary": await scene.run("get", "--workflow", unknown, "--wait", "0.1"),
            "unknown": await scene.run("get", "--workflow", unknown[:-1] + "2"),
            "active": await scene.run("get", "--workflow", unknown),
        }

        assert {name: result.status for name, result in results.items()} == {
            "begin": 0,
            "again": 0,
            "other servers": 2,
            "early": 2,
            "stale": 2,
            "no version": 2,
            "bad version": 2,
            "no summary": 2,
            "unknown": 2,
            "active": 0,
        }
        assert results["again"].out == begun.out
        assert "ExpectedServers" in results["other servers"].err
        assert "conflicts with aggregate state" in results["early"].err
        assert "version" in results["stale"].err
        assert "ULID" in results["bad version"].err
        assert "no summary" in results["no summary"].err
        assert "uninitialized" in results["unknown"].err
        assert value("statusCode", results["active"]) == "101"
        assert all(len(result.err.splitlines()) <= 4 for result in results.values())
        assert not any("Traceback" in result.err for result in results.values())
