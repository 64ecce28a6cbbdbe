from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from persistence import (
    BulkError,
    BulkItemError,
    CheckRequest,
    DeleteRequest,
    Feature,
    GetRequest,
    GetResponse,
    Limits,
    Metadata,
    Operation,
    RetryPolicy,
    SetOptions,
    SetRequest,
    StoreBusyError,
    TransactionTooLargeError,
)
from persistence.base import BaseStore


class CountingStore(BaseStore):
    """Notes how many requests are under way at once; every third key fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.calls: list[str] = []
        self.under_way = 0
        self.most_at_once = 0
        self.failures = failures
        self.opened = 0

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset()

    @property
    def limits(self) -> Limits:
        return Limits(1, 1, 1, 1)

    async def init(self, metadata: Metadata) -> None:
        self.opened += 1

    async def aclose(self) -> None:
        self.opened -= 1

    async def ping(self) -> None:
        pass

    async def get(self, request: GetRequest) -> GetResponse:
        await self._work(request.key)
        return GetResponse(data=request.key.encode())

    async def multi(self, operations: Sequence[Operation]) -> str:
        for operation in operations:
            assert not isinstance(operation, CheckRequest)
            await self._work(operation.key)
        return ""

    async def _work(self, key: str) -> None:
        self.calls.append(key)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if key.startswith("bad") and self.failures:
            self.failures -= 1
            raise StoreBusyError(f"locked at {key}")


KEYS = [f"key{number}" for number in range(10)]


@pytest.mark.parametrize(("parallelism", "expected"), [(0, 10), (-1, 10), (1, 1), (3, 3), (100, 10)])
async def test_bulk_forms_keep_to_their_parallelism(parallelism: int, expected: int) -> None:
    for bulk in ("get", "set", "delete"):
        store = CountingStore()
        if bulk == "get":
            answers = await store.bulk_get([GetRequest(key=key) for key in KEYS], parallelism=parallelism)
            assert [answer.data for answer in answers] == [key.encode() for key in KEYS]
        elif bulk == "set":
            requests = [SetRequest(key=key, value=b"") for key in KEYS]
            await store.bulk_set(requests, parallelism=parallelism)
        else:
            await store.bulk_delete([DeleteRequest(key=key) for key in KEYS], parallelism=parallelism)
        assert store.most_at_once == expected
        assert sorted(store.calls) == sorted(KEYS)


async def test_bulk_errors_name_what_failed_and_carry_the_cause() -> None:
    store = CountingStore(failures=2)
    keys = ["key0", "bad1", "key2", "bad3"]
    with pytest.raises(BulkError) as failed:
        await store.bulk_set([SetRequest(partition="p", key=key, value=b"") for key in keys])
    assert [(error.partition, error.key) for error in failed.value.errors] == [("p", "bad1"), ("p", "bad3")]
    for error in failed.value.errors:
        assert isinstance(error.error, StoreBusyError)
        assert error.__cause__ is error.error
    assert store.calls == keys


async def test_bulk_get_puts_errors_into_entries() -> None:
    answers = await CountingStore(failures=1).bulk_get([GetRequest(key="bad"), GetRequest(key="key")])
    assert isinstance(answers[0].error, StoreBusyError)
    assert (answers[0].data, answers[1].data, answers[1].error) == (None, b"key", None)


async def test_cancelled_bulk_stops() -> None:
    store = CountingStore()
    task = asyncio.create_task(
        store.bulk_set([SetRequest(key=key, value=b"") for key in KEYS], parallelism=2)
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(store.calls) < len(KEYS)


async def test_retry_policy_of_a_request_is_followed() -> None:
    policy = RetryPolicy(interval=timedelta(), threshold=3)
    store = CountingStore(failures=2)
    await store.set(SetRequest(key="bad", value=b"", options=SetOptions(retry_policy=policy)))
    assert store.calls == ["bad"] * 3


async def test_context_manager_opens_and_closes() -> None:
    store = CountingStore()
    async with store as same:
        assert same is store
        assert store.opened == 1
    assert store.opened == 0


def test_refusal_of_size_is_a_bad_request() -> None:
    assert issubclass(TransactionTooLargeError, ValueError)


def test_many_failures_of_a_bulk_are_told_in_few_words() -> None:
    failures = [BulkItemError("", f"key {number}", ValueError("no")) for number in range(1000)]
    error = BulkError(failures)
    assert len(error.errors) == 1000
    assert str(error).startswith("1000 items failed: 'key 0' in partition '': no; 'key 1'")
    assert str(error).endswith("; and 990 more")
    assert "more" not in str(BulkError(failures[:10]))
