from __future__ import annotations

from datetime import timedelta
from typing import cast

import attrs
import pytest

from persistence import (
    CommitOutcomeUnknownError,
    DeleteOptions,
    DeleteRequest,
    ETagMismatchError,
    InvalidRequestError,
    RetryPattern,
    RetryPolicy,
    SetOptions,
    SetRequest,
    StoreBusyError,
    StoreUnavailableError,
    delete_with_retries,
    set_with_retries,
)


@attrs.define
class FlakyStore:
    """Fails as it is told, and notes calls and pauses."""

    errors: list[Exception]
    calls: int = 0
    pauses: list[float] = attrs.Factory(list)

    async def call(self, request: SetRequest | DeleteRequest) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def set(self, policy: RetryPolicy | None) -> None:
        request = SetRequest(key="key", value=b"", options=SetOptions(retry_policy=policy))
        await set_with_retries(self.call, request, sleep=self.sleep)

    async def delete(self, policy: RetryPolicy | None) -> None:
        request = DeleteRequest(key="key", options=DeleteOptions(retry_policy=policy))
        await delete_with_retries(self.call, request, sleep=self.sleep)


def busy(times: int) -> list[Exception]:
    return [StoreBusyError(f"locked {time}") for time in range(times)]


def policy(pattern: RetryPattern = RetryPattern.LINEAR, threshold: int = 3) -> RetryPolicy:
    return RetryPolicy(pattern=pattern, interval=timedelta(seconds=2), threshold=threshold)


@pytest.mark.parametrize(
    "chosen", [None, RetryPolicy(), policy(threshold=0), policy(threshold=-1), policy(threshold=1)]
)
async def test_without_a_threshold_there_is_one_call(chosen: RetryPolicy | None) -> None:
    store = FlakyStore(busy(5))
    with pytest.raises(StoreBusyError, match="locked 0"):
        await store.set(chosen)
    assert (store.calls, store.pauses) == (1, [])


async def test_a_threshold_counts_all_calls() -> None:
    store = FlakyStore(busy(2))
    await store.set(policy(threshold=3))
    assert (store.calls, store.pauses) == (3, [2, 2])


async def test_the_last_error_is_raised_without_a_pause_before() -> None:
    store = FlakyStore(busy(9))
    with pytest.raises(StoreBusyError, match="locked 2"):
        await store.set(policy(threshold=3))
    assert (store.calls, store.pauses) == (3, [2, 2])


async def test_exponential_pauses_double() -> None:
    store = FlakyStore(busy(9))
    with pytest.raises(StoreUnavailableError):
        await store.delete(policy(RetryPattern.EXPONENTIAL, threshold=5))
    assert (store.calls, store.pauses) == (5, [2, 4, 8, 16])


@pytest.mark.parametrize(
    "refusal", [ETagMismatchError("stale"), InvalidRequestError("bad"), CommitOutcomeUnknownError("lost")]
)
async def test_a_refusal_is_final(refusal: Exception) -> None:
    for method in (FlakyStore.set, FlakyStore.delete):
        store = FlakyStore([refusal])
        with pytest.raises(type(refusal)):
            await method(store, policy())
        assert store.calls == 1


async def test_an_unknown_pattern_is_refused_without_a_call() -> None:
    store = FlakyStore([])
    with pytest.raises(InvalidRequestError, match="cubic"):
        await store.set(policy(cast("RetryPattern", "cubic")))
    assert store.calls == 0
