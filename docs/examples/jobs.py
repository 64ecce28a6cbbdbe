"""Jobs of several tasks, each a process of this machine (Linux): created, kept running, updated, killed.

python jobs.py serve                      runs the engine; kill it and start it again: tasks go on meanwhile
python jobs.py create web 2 sleep 1000    two tasks that sleep
python jobs.py status web
python jobs.py update web sleep 2000      other processes take their place
python jobs.py kill web
"""

import asyncio
import contextlib
import enum
import json
import os
import signal
import sys
from collections.abc import Awaitable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import attrs

from hsm.goalstate import (
    Action,
    ActionList,
    ActionTable,
    DurableEngine,
    DurableOptions,
    EntityKind,
    EntityNotFoundError,
    Run,
    Standing,
    when,
)
from persistence import EngineStore, GetRequest, SetRequest, connect, require

PARTITION: Final = "jobs"


class JobState(enum.Enum):
    INITIALIZED = enum.auto()  # it has fewer tasks than it should have
    RUNNING = enum.auto()
    STOPPED = enum.auto()


class TaskState(enum.Enum):
    INITIALIZED = enum.auto()  # to be started, or was being started when something happened
    RUNNING = enum.auto()
    OUTDATED = enum.auto()  # runs what its job said earlier
    ENDED = enum.auto()


class Goal(enum.Enum):
    RUNNING = enum.auto()
    KILLED = enum.auto()


# What is remembered of jobs and tasks, besides their goals, which the engine keeps.
@attrs.frozen
class JobRecord:
    command: list[str]
    instances: int
    version: int = 1


@attrs.frozen
class TaskRecord:
    number: int = 0  # of the run: each one is another process
    version: int = 0  # of the job that this run is of
    state: str = TaskState.INITIALIZED.name
    failures: int = 0  # in a row
    since: float = 0.0  # when it was started, or has ended


@attrs.frozen(kw_only=True)
class Settings:
    poll: timedelta = timedelta(seconds=1)  # how often running processes are looked at
    grace: timedelta = timedelta(seconds=5)  # between SIGTERM and SIGKILL
    initial_backoff: timedelta = timedelta(seconds=1)  # after the first end of a process that should run
    maximum_backoff: timedelta = timedelta(minutes=5)  # who has run for that long has not failed


class Jobs:
    """The records, and the engine that works on them."""

    def __init__(
        self,
        store: EngineStore,
        options: DurableOptions | None = None,
        settings: Settings | None = None,
        *,
        serve: bool = True,
    ) -> None:
        self._store = store
        self.settings = settings or Settings()
        self.job_kind: EntityKind[Goal] = EntityKind("job", lambda id_: Job(id_, self), Goal)
        self.task_kind: EntityKind[Goal] = EntityKind("task", lambda id_: Task(id_, self), Goal)
        kinds = [self.job_kind, self.task_kind]
        self.engine = DurableEngine(store, kinds, options, run_entities=serve)
        self.waiters: set[asyncio.Task[None]] = set()

    # What people ask for: the record and the goal are written first, then the engine looks at them.
    async def create(self, id_: str, command: list[str], instances: int) -> None:
        await self.write(f"job/{id_}", JobRecord(command, instances))
        await self.engine.enqueue(self.job_kind, id_, goal=Goal.RUNNING)

    async def update(self, id_: str, command: list[str]) -> None:
        job = await self.job(id_)
        await self.write(f"job/{id_}", attrs.evolve(job, command=command, version=job.version + 1))
        await self.engine.enqueue(self.job_kind, id_)

    async def kill(self, id_: str) -> None:
        await self.engine.enqueue(self.job_kind, id_, goal=Goal.KILLED)

    async def status(self, id_: str) -> dict[str, TaskRecord]:
        job = await self.job(id_)
        return {task: await self.task(task) for task in task_ids(id_, job.instances)}

    # Records
    async def job(self, id_: str) -> JobRecord:
        found = await self._store.get(GetRequest(partition=PARTITION, key=f"job/{id_}"))
        if found.data is None:
            raise EntityNotFoundError(f"there is no job {id_!r}")
        return JobRecord(**json.loads(found.data))

    async def task(self, id_: str) -> TaskRecord:
        found = await self._store.get(GetRequest(partition=PARTITION, key=f"task/{id_}"))
        return TaskRecord() if found.data is None else TaskRecord(**json.loads(found.data))

    async def write(self, key: str, record: JobRecord | TaskRecord) -> None:
        value = json.dumps(attrs.asdict(record)).encode()
        await self._store.set(SetRequest(partition=PARTITION, key=key, value=value))

    def tell_engine_when(self, ended: Awaitable[object], id_: str) -> None:
        """Evaluate a task as soon as its process has ended, and not only at the next poll."""

        async def wait() -> None:
            await ended
            await self.engine.enqueue(self.task_kind, id_)

        waiter = asyncio.get_running_loop().create_task(wait())
        self.waiters.add(waiter)
        waiter.add_done_callback(self.waiters.discard)

    async def close(self) -> None:
        """Wait for no process any more. The processes go on."""
        for waiter in list(self.waiters):
            waiter.cancel()
        await asyncio.gather(*self.waiters, return_exceptions=True)


def task_ids(job: str, instances: int) -> list[str]:
    return [f"{job}-{number}" for number in range(instances)]


# Entities: handles without a state of their own.
@attrs.frozen
class Job:
    id: str
    jobs: Jobs

    async def read(self) -> Standing[JobState, Goal]:
        goal = await self.jobs.engine.goal(self.jobs.job_kind, self.id) or Goal.KILLED
        record = await self.jobs.job(self.id)
        goals = [await self.task_goal(task) for task in task_ids(self.id, record.instances)]
        if all(task is Goal.RUNNING for task in goals):
            return Standing(JobState.RUNNING, goal)
        stopped = all(task in {None, Goal.KILLED} for task in goals) and goal is Goal.KILLED
        return Standing(JobState.STOPPED if stopped else JobState.INITIALIZED, goal)

    async def task_goal(self, task: str) -> Goal | None:
        return await self.jobs.engine.goal(self.jobs.task_kind, task)

    def action_list(self, state: JobState, goal: Goal) -> ActionList["Job"]:
        return JOBS.action_list(state, goal)

    async def start_tasks(self, run: Run) -> None:
        await self.set_goals(Goal.RUNNING)

    async def kill_tasks(self, run: Run) -> None:
        await self.set_goals(Goal.KILLED)

    async def set_goals(self, goal: Goal) -> None:
        for task in task_ids(self.id, (await self.jobs.job(self.id)).instances):
            await self.jobs.engine.enqueue(self.jobs.task_kind, task, goal=goal)


@attrs.frozen
class Task:
    id: str
    jobs: Jobs

    @property
    def job_id(self) -> str:
        return self.id.rpartition("-")[0]

    async def read(self) -> Standing[TaskState, Goal]:
        goal = await self.jobs.engine.goal(self.jobs.task_kind, self.id) or Goal.KILLED
        record, job = await self.jobs.task(self.id), await self.jobs.job(self.job_id)
        state = TaskState[record.state]
        if state is TaskState.RUNNING and record.version != job.version:
            state = TaskState.OUTDATED
        return Standing(state, goal)

    def action_list(self, state: TaskState, goal: Goal) -> ActionList["Task"]:
        return TASKS.action_list(state, goal)

    async def start(self, run: Run) -> None:
        """Start a process, or find the one that was started before something happened to this program."""
        record, job = await self.jobs.task(self.id), await self.jobs.job(self.job_id)
        if not record.number:
            record = attrs.evolve(record, number=1)
            await self.jobs.write(f"task/{self.id}", record)
        if find(self.mark(record)) is None:
            process = await asyncio.create_subprocess_exec(
                *job.command,
                env=os.environ | {"JOBS_TASK": self.mark(record)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            self.jobs.tell_engine_when(process.wait(), self.id)
        await self.become(record, TaskState.RUNNING, run, version=job.version)
        run.again(self.jobs.settings.poll)

    async def watch(self, run: Run) -> None:
        """See whether the process is there; it may have been killed by anybody, at any time."""
        record, settings = await self.jobs.task(self.id), self.jobs.settings
        if find(self.mark(record)) is not None:
            run.again(settings.poll)
            return
        lasted = timedelta(seconds=run.now().timestamp() - record.since)
        failures = 1 if lasted >= settings.maximum_backoff else record.failures + 1
        await self.become(record, TaskState.ENDED, run, failures=failures)
        run.again()

    async def restart(self, run: Run) -> None:
        """Begin another run, but not too often. What counts is in the record: a restart changes nothing."""
        record, settings = await self.jobs.task(self.id), self.jobs.settings
        backoff = timedelta()
        if record.failures:
            doubled = settings.initial_backoff * 2 ** min(record.failures - 1, 30)
            backoff = min(doubled, settings.maximum_backoff)
        wait = datetime.fromtimestamp(record.since, run.now().tzinfo) + backoff - run.now()
        if wait > timedelta():
            run.again(wait)
            return
        record = attrs.evolve(record, number=record.number + 1)
        await self.become(record, TaskState.INITIALIZED, run)
        run.again()

    async def stop(self, run: Run) -> None:
        """Ask the process to end, and end it after a while."""
        record, settings = await self.jobs.task(self.id), self.jobs.settings
        end = run.now() + settings.grace
        signal_process(find(self.mark(record)), signal.SIGTERM)
        while (process := find(self.mark(record))) is not None:
            if run.now() >= end:
                signal_process(process, signal.SIGKILL)
            await asyncio.sleep(0.02)
        # It was told to: that is no failure.
        await self.become(record, TaskState.ENDED, run, failures=0)
        run.again()

    async def become(
        self, record: TaskRecord, state: TaskState, run: Run, *, version: int = 0, failures: int | None = None
    ) -> None:
        await self.jobs.write(
            f"task/{self.id}",
            attrs.evolve(
                record,
                state=state.name,
                since=run.now().timestamp(),
                version=version or record.version,
                failures=record.failures if failures is None else failures,
            ),
        )

    def mark(self, record: TaskRecord) -> str:
        """What the process carries in its environment, so that it can be found again."""
        return f"{self.id}/{record.number}"


# Processes
def find(mark: str) -> int | None:
    """The process that was started with a mark, whoever has started it. One that has ended is not found."""
    wanted = f"JOBS_TASK={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            process = int(path.parent.name)
            if wanted in path.read_bytes().split(b"\0") and os.getsid(process) == process:
                return process
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return None


def signal_process(process: int | None, number: signal.Signals) -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, number)


# Tables: what is done in which state with which goal.
JOBS = ActionTable(
    JobState,
    Goal,
    when(
        [JobState.INITIALIZED, JobState.STOPPED],
        [Goal.RUNNING],
        Action("start_tasks", Job.start_tasks),
        leads_to=JobState.RUNNING,
    ),
    when([JobState.RUNNING], [Goal.RUNNING], Action("start_tasks", Job.start_tasks)),
    when(
        [JobState.INITIALIZED, JobState.RUNNING],
        [Goal.KILLED],
        Action("kill_tasks", Job.kill_tasks),
        leads_to=JobState.STOPPED,
    ),
    when([JobState.STOPPED], [Goal.KILLED]),
)
TASKS = ActionTable(
    TaskState,
    Goal,
    when([TaskState.INITIALIZED], [Goal.RUNNING], Action("start", Task.start), leads_to=TaskState.RUNNING),
    when([TaskState.RUNNING], [Goal.RUNNING], Action("watch", Task.watch)),
    when([TaskState.OUTDATED], [Goal.RUNNING], Action("stop", Task.stop), leads_to=TaskState.ENDED),
    when([TaskState.ENDED], [Goal.RUNNING], Action("restart", Task.restart), leads_to=TaskState.INITIALIZED),
    when(
        set(TaskState) - {TaskState.ENDED}, [Goal.KILLED], Action("stop", Task.stop), leads_to=TaskState.ENDED
    ),
    when([TaskState.ENDED], [Goal.KILLED]),
    timeout=timedelta(seconds=30),
)


async def main(command: str, *arguments: str) -> None:
    async with require(connect("sqlite:///jobs.db"), EngineStore) as store:
        jobs = Jobs(store, serve=command == "serve")
        async with jobs.engine:
            if command == "serve":
                print("serving", flush=True)
                await asyncio.Event().wait()
            elif command == "create":
                await jobs.create(arguments[0], list(arguments[2:]), int(arguments[1]))
            elif command == "update":
                await jobs.update(arguments[0], list(arguments[1:]))
            elif command == "kill":
                await jobs.kill(arguments[0])
            for task, record in (await jobs.status(arguments[0])).items():
                print(task, record.state, f"run {record.number}", f"failures {record.failures}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
