"""Jobs and tasks as real processes: kept running, throttled, updated, killed, found again after a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from docs.examples import jobs as example
from docs.examples.jobs import Goal, Jobs, Settings, TaskRecord, find
from hsm.goalstate import DurableOptions
from persistence import EngineStore, connect, require

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)

SLEEP = ["sleep", "1000"]
POLL = timedelta(milliseconds=50)
SETTINGS = Settings(
    poll=POLL, grace=timedelta(seconds=5), initial_backoff=POLL, maximum_backoff=timedelta(hours=1)
)


@pytest.fixture
def job(tmp_path: Path) -> str:
    """A name that no other test has."""
    return f"job{abs(hash(tmp_path))}"


@asynccontextmanager
async def serving(folder: Path, settings: Settings = SETTINGS) -> AsyncIterator[Jobs]:
    options = DurableOptions(
        poll_interval=POLL, failure_retry_delay=POLL, run_timeout=timedelta(seconds=30), lease_seconds=2
    )
    async with require(connect(f"sqlite:///{folder / 'jobs.db'}"), EngineStore) as store:
        jobs = Jobs(store, options, settings)
        async with jobs.engine:
            try:
                yield jobs
            finally:
                await jobs.close()


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that processes do."""
    async with asyncio.timeout(60):
        while not await check():  # noqa: ASYNC110 - processes tell nobody
            await asyncio.sleep(0.02)


def process_of(task: str, record: TaskRecord) -> int | None:
    return find(f"{task}/{record.number}")


async def processes(jobs: Jobs, job: str) -> dict[str, int | None]:
    return {task: process_of(task, record) for task, record in (await jobs.status(job)).items()}


def command_of(process: int | None) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")


async def all_run(jobs: Jobs, job: str, version: int = 1) -> None:
    async def check() -> bool:
        status = await jobs.status(job)
        return all(
            record.state == "RUNNING" and record.version == version and process_of(task, record) is not None
            for task, record in status.items()
        )

    await until(check)


async def none_runs(jobs: Jobs, job: str) -> None:
    async def check() -> bool:
        status = await jobs.status(job)
        return all(record.state == "ENDED" for record in status.values())

    await until(check)


async def test_task_that_is_killed_from_outside_is_started_again(tmp_path: Path, job: str) -> None:
    async with serving(tmp_path) as jobs:
        await jobs.create(job, SLEEP, 2)
        await all_run(jobs, job)
        before = await processes(jobs, job)
        victim = before[f"{job}-0"]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)

        async def replaced() -> bool:
            now = await processes(jobs, job)
            return now[f"{job}-0"] not in {None, victim}

        await until(replaced)
        status = await jobs.status(job)
        assert (status[f"{job}-0"].number, status[f"{job}-0"].failures) == (2, 1)
        assert (await processes(jobs, job))[f"{job}-1"] == before[f"{job}-1"]
        await jobs.kill(job)
        await none_runs(jobs, job)
        assert set((await processes(jobs, job)).values()) == {None}


async def test_task_that_ends_again_and_again_is_throttled(tmp_path: Path, job: str) -> None:
    async with serving(tmp_path) as jobs:
        await jobs.create(job, ["false"], 1)
        task = f"{job}-0"

        async def failed() -> bool:
            record = (await jobs.status(job))[task]
            return record.failures >= 4 and record.state == "ENDED"

        await until(failed)
        record = (await jobs.status(job))[task]
        info = await jobs.engine.describe(jobs.task_kind, task)

        async def waits() -> bool:
            nonlocal info, record
            record, info = (await jobs.status(job))[task], await jobs.engine.describe(jobs.task_kind, task)
            if record.state != "ENDED" or info is None or info.deadline is None:
                return False
            return info.deadline.timestamp() - record.since > 2 * POLL.total_seconds()

        await until(waits)
        assert info is not None
        assert info.deadline is not None
        pause = info.deadline.timestamp() - record.since
        assert pause == pytest.approx(POLL.total_seconds() * 2 ** (record.failures - 1), abs=0.02)
        await jobs.kill(job)
        await none_runs(jobs, job)


async def test_update_puts_other_processes_in_their_place(tmp_path: Path, job: str) -> None:
    async with serving(tmp_path) as jobs:
        await jobs.create(job, SLEEP, 2)
        await all_run(jobs, job)
        before = await processes(jobs, job)
        await jobs.update(job, ["sleep", "2000"])
        await all_run(jobs, job, version=2)
        after = await processes(jobs, job)
        assert set(before.values()) & set(after.values()) == set()
        for process in after.values():
            assert command_of(process) == ["sleep", "2000"]
        assert {record.failures for record in (await jobs.status(job)).values()} == {0}
        await jobs.kill(job)
        await none_runs(jobs, job)


async def test_engine_that_comes_back_finds_its_processes_and_starts_what_has_ended(
    tmp_path: Path, job: str
) -> None:
    async with serving(tmp_path) as jobs:
        await jobs.create(job, SLEEP, 2)
        await all_run(jobs, job)
        before = await processes(jobs, job)
    assert {find(f"{task}/1") for task in before} == set(before.values())
    victim = before[f"{job}-1"]
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    async with serving(tmp_path) as jobs:

        async def recovered() -> bool:
            now = await processes(jobs, job)
            return None not in now.values() and now[f"{job}-1"] != victim

        await until(recovered)
        assert (await processes(jobs, job))[f"{job}-0"] == before[f"{job}-0"]
        await jobs.kill(job)
        await none_runs(jobs, job)
        await jobs.create(job, SLEEP, 1)
        await all_run(jobs, job)
        await jobs.kill(job)
        await none_runs(jobs, job)


async def test_process_that_does_not_heed_its_signal_is_killed(tmp_path: Path, job: str) -> None:
    ready = tmp_path / "ready"
    stubborn = ["sh", "-c", f"trap '' TERM; touch {ready}; while true; do sleep 0.1; done"]
    settings = Settings(poll=POLL, grace=timedelta(milliseconds=200), initial_backoff=POLL)
    async with serving(tmp_path, settings) as jobs:
        await jobs.create(job, stubborn, 1)

        async def trapped() -> bool:
            return ready.exists()

        await until(trapped)
        await all_run(jobs, job)
        await jobs.kill(job)
        await none_runs(jobs, job)
        assert set((await processes(jobs, job)).values()) == {None}


def test_tables_are_complete_and_drawn() -> None:
    assert "| RUNNING | start | watch | stop | restart |" in example.TASKS.markdown()
    assert example.JOBS.mermaid().count("subgraph") == 2
    assert example.TASKS.actions(example.TaskState.ENDED, Goal.KILLED) == ()


def test_program_that_is_killed_goes_on_when_it_is_started_again(tmp_path: Path, job: str) -> None:
    script = [sys.executable, str(Path(example.__file__).resolve())]

    def call(*arguments: str) -> str:
        result = subprocess.run(
            [*script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        )
        return result.stdout

    def serve() -> subprocess.Popen[str]:
        process = subprocess.Popen([*script, "serve"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        return process

    def wait_for(line: str) -> None:
        for _ in range(100):
            if line in call("status", job):
                return
        raise AssertionError(call("status", job))

    server = serve()
    try:
        call("create", job, "1", *SLEEP)
        wait_for(f"{job}-0 RUNNING run 1")
        server.kill()
        server.communicate()
        process = find(f"{job}-0/1")
        assert process is not None
        call("kill", job)
        assert find(f"{job}-0/1") == process
        server = serve()
        wait_for(f"{job}-0 ENDED")
        assert find(f"{job}-0/1") is None
    finally:
        server.kill()
        server.communicate()
