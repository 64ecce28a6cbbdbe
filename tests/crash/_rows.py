"""Whether the rows of a database agree with one another: the states of callbacks with their tasks and queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from hsm.components.callback import BACKOFF, INVOCATION, Callback, CallbackDefinition, State
from hsm.machine import Lifecycle
from persistence import EngineStore, GetRequest, connect, require
from persistence.executions import SETTINGS_KEY, SETTINGS_PARTITION, shard_partition
from persistence.proto.callback_pb2 import CallbackTask
from persistence.proto.execution_pb2 import (
    CurrentRun,
    DeadLetterRow,
    EngineSettings,
    ExecutionRow,
    ExecutionStatus,
    TaskRow,
)
from persistence.proto.hsm_pb2 import StateMachineTask

STATUS = {
    Lifecycle.RUNNING: ExecutionStatus.EXECUTION_STATUS_RUNNING,
    Lifecycle.COMPLETED: ExecutionStatus.EXECUTION_STATUS_COMPLETED,
    Lifecycle.FAILED: ExecutionStatus.EXECUTION_STATUS_FAILED,
}


async def problems(url: str) -> list[str]:
    """What is wrong with the rows of a database whose executions are callbacks and nothing else."""
    store = require(connect(url), EngineStore)
    async with store:
        found = await store.get(GetRequest(partition=SETTINGS_PARTITION, key=SETTINGS_KEY))
        if found.data is None:
            return []
        shards = range(EngineSettings.FromString(found.data).shard_count)
        return [
            f"shard {shard}: {problem}"
            for shard in shards
            async for problem in _problems_of_shard(store, shard_partition(shard))
        ]


async def _problems_of_shard(store: EngineStore, partition: str) -> AsyncIterator[str]:
    rows = {item.key: item.value async for item in store.scan(partition, "", "")}
    executions = set[str]()
    queued: Counter[str] = Counter()
    pending: dict[str, str] = {}
    for key, value in rows.items():
        letter, _, rest = key.partition("/")
        if letter == "e":
            executions.add(rest)
        elif letter == "c":
            run = f"{rest}/{CurrentRun.FromString(value).run_id}"
            if f"e/{run}" not in rows:
                yield f"{key} names a run that is not there"
        elif letter in {"t", "o", "i"}:
            queued[TaskRow.FromString(value).task_id] += 1
        elif letter == "d":
            queued[DeadLetterRow.FromString(value).task.task_id] += 1
        else:
            yield f"{key} is no row of an execution"
    for run in sorted(executions):
        execution = ExecutionRow.FromString(rows[f"e/{run}"])
        node = execution.root
        callback = CallbackDefinition.deserialize(node.data)
        if execution.state != callback.state.name or execution.status != STATUS[callback.lifecycle]:
            yield f"{run} is listed as {execution.state}, and is {callback.state.name}"
        if f"c/{run.rpartition('/')[0]}" not in rows:
            yield f"{run} is no current run"
        problem = _problem_of_tasks(callback, list(node.tasks))
        if problem:
            yield f"{run} {problem}"
        pending.update((task.id, run) for task in node.tasks)
    for task_id in sorted(queued.keys() - pending.keys()):
        yield f"task {task_id} is in a queue, and no machine waits for it"
    for task_id, run in pending.items():
        if queued[task_id] != 1:
            yield f"task {task_id} of {run} is in {queued[task_id]} queues"


def _problem_of_tasks(callback: Callback, tasks: list[StateMachineTask]) -> str:
    expected = {State.SCHEDULED: [INVOCATION.id], State.BACKING_OFF: [BACKOFF.id]}.get(callback.state, [])
    if [task.type for task in tasks] != expected:
        return f"is {callback.state.name} with the tasks {[task.type for task in tasks]}"
    for task in tasks:
        attempt = CallbackTask.FromString(task.data).attempt
        if attempt != callback.attempt:
            return f"is at attempt {callback.attempt}, its task at {attempt}"
    return ""
