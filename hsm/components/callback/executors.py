"""Running a callback's tasks: send, and note what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import attrs

from hsm.components.callback.machine import (
    BACKOFF,
    INVOCATION,
    Backoff,
    BackoffSerializer,
    Callback,
    CallbackDefinition,
    Failure,
    Invocation,
    InvocationSerializer,
    State,
)
from hsm.components.callback.moves import (
    AttemptFailed,
    Failed,
    Rescheduled,
    Succeeded,
    attempt_failed,
    failed,
    rescheduled,
    succeeded,
)
from hsm.components.callback.request import LONGEST_TIMEOUT, Request
from hsm.engine import Backoff as Delays
from hsm.errors import CommitOutcomeUnknownError, DestinationDownError, StorageUnavailableError
from hsm.executor import Environment
from hsm.ref import Ref
from hsm.registry import Registry
from hsm.tree import Node

__all__ = [
    "CallbackOptions",
    "Confirmed",
    "Outcome",
    "Refused",
    "Sender",
    "Unavailable",
    "register",
]

# A sender keeps the time of its request itself; this ends one that does not.
_TASK_TIMEOUT: Final = LONGEST_TIMEOUT + timedelta(minutes=1)
_FIRST_SAVE_PAUSE_SECONDS: Final = 0.05
_LONGEST_SAVE_PAUSE_SECONDS: Final = 1.0


@attrs.frozen
class Confirmed:
    """The receiver has accepted the request."""


@attrs.frozen
class Refused:
    """The receiver will never accept the request.

    Attributes:
        message: what it said.
        type: a short name of the kind of failure.
    """

    message: str
    type: str = ""


@attrs.frozen
class Unavailable:
    """The receiver could not be reached or had no time; it may have later.

    Attributes:
        message: what was met.
        type: a short name of the kind of failure.
        retry_after: the shortest pause that the receiver asks for.
    """

    message: str
    type: str = ""
    retry_after: timedelta | None = None


Outcome: TypeAlias = Confirmed | Refused | Unavailable

Sender: TypeAlias = Callable[[Request], Awaitable[Outcome]]
"""Sends a request once, within its time-out. What it raises counts against the task, not the attempts."""


@attrs.frozen(kw_only=True)
class CallbackOptions:
    """How callbacks are retried.

    Attributes:
        delays: pauses after failed attempts; less up to a fifth by chance.
        longest_retry_after: a receiver that asks for a longer pause than this is given this one.
        random: makes the jitter.
        patience: how long to go on trying to store what came of an attempt, when the store does not answer.
    """

    delays: Delays = attrs.field(factory=lambda: Delays(timedelta(seconds=1), timedelta(hours=1)))
    longest_retry_after: timedelta = timedelta(days=1)
    random: random.Random = attrs.field(factory=random.Random)
    patience: timedelta = timedelta(minutes=1)


def register(
    registry: Registry,
    sender: Sender,
    options: CallbackOptions | None = None,
    *,
    observer: Callable[[Ref, State], None] | None = None,
) -> None:
    """Make callbacks and their tasks known, and send them with `sender`.

    Args:
        registry: of the engine that is to run them.
        sender: for example an `HttpSender`.
        options: for retries.
        observer: told of each attempt's end, after it was stored: of which callback, and its state since.
    """
    executors = _Executors(sender, options or CallbackOptions(), observer)
    registry.register_machine(CallbackDefinition())
    registry.register_task_serializer(INVOCATION.id, InvocationSerializer())
    registry.register_task_serializer(BACKOFF.id, BackoffSerializer())
    registry.register_task(Invocation, timeout=_TASK_TIMEOUT)
    registry.register_task(Backoff)
    registry.register_executor(Invocation, executors.invoke)
    registry.register_timer_executor(Backoff, _reschedule)


class _Executors:
    def __init__(
        self, sender: Sender, options: CallbackOptions, observer: Callable[[Ref, State], None] | None
    ) -> None:
        self._sender = sender
        self._options = options
        self._observer = observer

    async def invoke(self, env: Environment, ref: Ref, task: Invocation) -> None:
        """Make one attempt.

        Raises:
            DestinationDownError: the receiver was at fault, and that was stored.
        """
        request = await env.read(ref, lambda node: node.data(Callback).request)
        outcome = await self._sender(request)
        now = env.now()
        # Chosen before the update, which may run its function again.
        delay = self._delay(task.attempt, outcome)
        state = await self._save(env, ref, lambda node: _note(node, outcome, now, delay))
        if self._observer is not None:
            self._observer(ref, state)
        if isinstance(outcome, Unavailable):
            asked = outcome.retry_after
            raise DestinationDownError(None, asked and min(asked, self._options.longest_retry_after))

    async def _save(self, env: Environment, ref: Ref, note: Callable[[Node], State]) -> State:
        """Store what came of an attempt, patiently: without it, the request would be sent once more."""
        deadline = time.monotonic() + self._options.patience.total_seconds()
        pause = _FIRST_SAVE_PAUSE_SECONDS
        while True:
            try:
                return await env.update(ref, note)
            except (StorageUnavailableError, CommitOutcomeUnknownError):
                # An outcome that is unknown shows at the next try: the task is gone if it was stored.
                if time.monotonic() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_SAVE_PAUSE_SECONDS)

    def _delay(self, attempt: int, outcome: Outcome) -> timedelta:
        delay = self._options.delays.delay(attempt, self._options.random)
        if isinstance(outcome, Unavailable) and outcome.retry_after is not None:
            return max(delay, min(outcome.retry_after, self._options.longest_retry_after))
        return delay


def _note(node: Node, outcome: Outcome, now: datetime, delay: timedelta) -> State:
    """Move a callback on after an attempt."""
    callback = node.data(Callback)
    if isinstance(outcome, Confirmed):
        node.apply(succeeded, Succeeded(now))
    elif isinstance(outcome, Refused):
        node.apply(failed, Failed(now, Failure(outcome.message, outcome.type, retryable=False)))
    elif callback.exhausted:
        node.apply(failed, Failed(now, Failure(outcome.message, outcome.type)))
    else:
        node.apply(attempt_failed, AttemptFailed(now, Failure(outcome.message, outcome.type), delay))
    return callback.state


def _reschedule(_: Environment, node: Node, __: Backoff) -> None:
    node.apply(rescheduled, Rescheduled())
