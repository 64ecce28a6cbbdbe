"""Log records: what each of them says in fields, besides its text."""

from __future__ import annotations

import logging
from typing import Final

from hsm.engine._rows import QueuedTask
from persistence.executions import shard_of_partition

__all__ = ["FIELDS", "engine_logger", "of_partition", "of_task"]

FIELDS: Final = (
    "hsm_namespace",
    "hsm_execution_id",
    "hsm_run_id",
    "hsm_task_id",
    "hsm_task_type",
    "hsm_attempt",
    "hsm_shard",
)


def engine_logger(name: str = "hsm.engine") -> logging.Logger:
    """A logger of the engine. Each of its records has all the fields; what it does not know is None."""
    logger = logging.getLogger(name)
    if not any(isinstance(filter_, _Complete) for filter_ in logger.filters):
        logger.addFilter(_Complete())
    return logger


class _Complete(logging.Filter):
    """Lets every record through, so that a formatter can rely on the fields."""

    def filter(self, record: logging.LogRecord) -> bool:
        for field in FIELDS:
            if not hasattr(record, field):
                setattr(record, field, None)
        return True


def of_task(task: QueuedTask) -> dict[str, object]:
    """The fields of a record about a task."""
    fields: dict[str, object] = {"hsm_task_id": task.id, "hsm_shard": shard_of_partition(task.partition)}
    if task.row is not None:
        fields["hsm_namespace"], fields["hsm_execution_id"], fields["hsm_run_id"] = task.execution
        fields["hsm_task_type"] = str(task.row.info.type) if task.task is None else task.task.type.name
        fields["hsm_attempt"] = task.row.failures + 1
    return fields


def of_partition(partition: str) -> dict[str, object]:
    """The fields of a record about a shard."""
    return {"hsm_shard": shard_of_partition(partition)}
