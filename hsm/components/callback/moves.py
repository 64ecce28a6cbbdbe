"""What can happen to a callback: events, and the transitions they make.

| from | event | to | task |
|---|---|---|---|
| STANDBY | `Scheduled` | SCHEDULED | invocation |
| SCHEDULED | `AttemptFailed` | BACKING_OFF | backoff |
| BACKING_OFF | `Rescheduled` | SCHEDULED | invocation |
| SCHEDULED | `Failed` | FAILED | |
| SCHEDULED | `Succeeded` | SUCCEEDED | |
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import attrs

from hsm.components.callback.machine import Callback, Failure, State
from hsm.transition import TransitionOutput, transitions

__all__ = [
    "AttemptFailed",
    "Failed",
    "Rescheduled",
    "Scheduled",
    "Succeeded",
    "attempt_failed",
    "failed",
    "rescheduled",
    "scheduled",
    "succeeded",
]

_callback: Final = transitions(Callback)


@attrs.frozen
class Scheduled:
    """What the callback waited for has happened."""


@attrs.frozen
class AttemptFailed:
    """An attempt failed, and another one may help.

    Attributes:
        time: when it ended.
        failure: what it met.
        delay: until the next attempt.
    """

    time: datetime
    failure: Failure
    delay: timedelta


@attrs.frozen
class Rescheduled:
    """The pause is over."""


@attrs.frozen
class Failed:
    """An attempt failed, and there will be no other.

    Attributes:
        time: when it ended.
        failure: what it met.
    """

    time: datetime
    failure: Failure


@attrs.frozen
class Succeeded:
    """The receiver has confirmed.

    Attributes:
        time: when it did.
    """

    time: datetime


def _begin_attempt(callback: Callback) -> TransitionOutput:
    message = callback.message
    message.attempt += 1
    message.ClearField("next_attempt_schedule_time")
    return TransitionOutput((callback.invocation(),))


def _end_attempt(callback: Callback, time: datetime, failure: Failure | None) -> None:
    message = callback.message
    message.last_attempt_complete_time.FromDatetime(time)
    message.ClearField("last_attempt_failure")
    if failure is not None:
        message.last_attempt_failure.message = failure.message
        info = message.last_attempt_failure.application_failure_info
        info.type = failure.type
        info.non_retryable = not failure.retryable


@_callback.move([State.STANDBY], State.SCHEDULED)
def scheduled(callback: Callback, _: Scheduled) -> TransitionOutput:
    """Begin the first attempt."""
    return _begin_attempt(callback)


@_callback.move([State.SCHEDULED], State.BACKING_OFF)
def attempt_failed(callback: Callback, event: AttemptFailed) -> TransitionOutput:
    """Note the failure and wait."""
    _end_attempt(callback, event.time, event.failure)
    callback.message.next_attempt_schedule_time.FromDatetime(event.time + event.delay)
    return TransitionOutput((callback.backoff(),))


@_callback.move([State.BACKING_OFF], State.SCHEDULED)
def rescheduled(callback: Callback, _: Rescheduled) -> TransitionOutput:
    """Begin the next attempt; the last failure stays to be seen."""
    return _begin_attempt(callback)


@_callback.move([State.SCHEDULED], State.FAILED)
def failed(callback: Callback, event: Failed) -> None:
    """Give up."""
    _end_attempt(callback, event.time, event.failure)


@_callback.move([State.SCHEDULED], State.SUCCEEDED)
def succeeded(callback: Callback, event: Succeeded) -> None:
    """Done."""
    _end_attempt(callback, event.time, None)
