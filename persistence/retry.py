"""Trying again: the retry policy that a set or delete carries in its options."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from persistence.errors import CommitOutcomeUnknownError, ConflictError, InvalidRequestError
from persistence.options import check_delete_request_options, check_set_request_options
from persistence.store import DeleteRequest, RetryPattern, RetryPolicy, SetRequest

__all__ = ["delete_with_retries", "set_with_retries"]

RequestT = TypeVar("RequestT", SetRequest, DeleteRequest)


async def set_with_retries(
    method: Callable[[SetRequest], Awaitable[None]],
    request: SetRequest,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Call `method` until it succeeds, at most as often as the request's retry policy says.

    A threshold of N is N calls in all; without a policy it is one. Refusals (a condition that does not
    hold, a bad request) are final, and so is an outcome that is not known, as the write may have taken place.
    The last error is raised as it is, without a pause before it.

    Semantics: Dapr `state.SetWithRetries` (v0.1), except for the refusals, the last error and the pause.

    Raises:
        InvalidRequestError: the options are not valid; nothing was called.
    """
    check_set_request_options(request)
    await _with_retries(method, request, request.options.retry_policy, sleep)


async def delete_with_retries(
    method: Callable[[DeleteRequest], Awaitable[None]],
    request: DeleteRequest,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Call `method` until it succeeds, as `set_with_retries` does.

    Raises:
        InvalidRequestError: the options are not valid; nothing was called.
    """
    check_delete_request_options(request)
    await _with_retries(method, request, request.options.retry_policy, sleep)


async def _with_retries(
    method: Callable[[RequestT], Awaitable[None]],
    request: RequestT,
    policy: RetryPolicy | None,
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    calls_left = 1 if policy is None else max(1, policy.threshold)
    pause_seconds = 0.0 if policy is None else policy.interval.total_seconds()
    doubling = policy is not None and policy.pattern is RetryPattern.EXPONENTIAL
    while True:
        try:
            await method(request)
        except (ConflictError, InvalidRequestError, CommitOutcomeUnknownError):
            raise
        except Exception:
            calls_left -= 1
            if not calls_left:
                raise
        else:
            return
        await sleep(pause_seconds)
        if doubling:
            pause_seconds *= 2
