"""Callbacks: one HTTP request, delivered at least once, with retries.

A callback stands alone as the root of an execution, or below any machine that wants to tell somebody
something. `hsm.components.callback.http` sends over HTTP and needs the extra `http`.
"""

from hsm.components.callback.executors import (
    CallbackOptions,
    Confirmed,
    Outcome,
    Refused,
    Sender,
    Unavailable,
    register,
)
from hsm.components.callback.machine import (
    BACKOFF,
    CALLBACK,
    INVOCATION,
    Backoff,
    Callback,
    CallbackDefinition,
    Failure,
    Invocation,
    State,
)
from hsm.components.callback.moves import (
    AttemptFailed,
    Failed,
    Rescheduled,
    Scheduled,
    Succeeded,
    attempt_failed,
    failed,
    rescheduled,
    scheduled,
    succeeded,
)
from hsm.components.callback.request import InvalidRequestError, Request, destination_of

__all__ = [
    "BACKOFF",
    "CALLBACK",
    "INVOCATION",
    "AttemptFailed",
    "Backoff",
    "Callback",
    "CallbackDefinition",
    "CallbackOptions",
    "Confirmed",
    "Failed",
    "Failure",
    "InvalidRequestError",
    "Invocation",
    "Outcome",
    "Refused",
    "Request",
    "Rescheduled",
    "Scheduled",
    "Sender",
    "State",
    "Succeeded",
    "Unavailable",
    "attempt_failed",
    "destination_of",
    "failed",
    "register",
    "rescheduled",
    "scheduled",
    "succeeded",
]
