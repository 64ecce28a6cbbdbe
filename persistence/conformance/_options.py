"""Options: every one of the contract is taken, and anything else is refused before it has an effect."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final

from persistence.conformance.case import Cases, ConformanceError, Refused, World, expect_equal
from persistence.errors import ETagMismatchError, InvalidRequestError
from persistence.store import (
    Concurrency,
    Consistency,
    DeleteOptions,
    DeleteRequest,
    Feature,
    GetOptions,
    GetRequest,
    RetryPattern,
    RetryPolicy,
    SetOptions,
    SetRequest,
)

__all__ = ["cases"]

cases: Final = Cases()

_PATIENCE_SECONDS: Final = 10.0
_FOR_EVER: Final = timedelta(days=1)


@cases.case()
async def every_consistency_is_taken(world: World) -> None:
    """Where a store knows no difference, it does what it always does; a strong read sees every write."""
    for consistency in Consistency:
        value = consistency.name.encode()
        options = SetOptions(consistency=consistency)
        await world.store.set(SetRequest(partition=world.partition, key="key", value=value, options=options))
        strong = GetRequest(
            partition=world.partition, key="key", options=GetOptions(consistency=Consistency.STRONG)
        )
        expect_equal((await world.store.get(strong)).data, value, f"value written as {consistency}")
    for consistency in Consistency:
        request = GetRequest(
            partition=world.partition, key="key", options=GetOptions(consistency=consistency)
        )
        (answer,) = await world.store.bulk_get([request])
        expect_equal((answer.key, answer.error), ("key", None), f"answer of a read as {consistency}")
    for consistency in Consistency:
        delete = DeleteOptions(consistency=consistency)
        await world.store.delete(DeleteRequest(partition=world.partition, key="key", options=delete))
    expect_equal(await world.value("key"), None, "value")


@cases.case(Feature.ETAG)
async def a_retry_policy_does_not_repeat_a_refusal(world: World) -> None:
    """It is for failures that may pass; and what succeeds is done once."""
    stale = await world.other_etag()
    for pattern in RetryPattern:
        policy = RetryPolicy(pattern=pattern, interval=_FOR_EVER, threshold=5)
        options = SetOptions(concurrency=Concurrency.FIRST_WRITE, retry_policy=policy)
        first = SetRequest(partition=world.partition, key="key", value=b"", options=options)
        delete = DeleteRequest(
            partition=world.partition, key="key", etag=stale, options=DeleteOptions(retry_policy=policy)
        )
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await world.store.set(first)
                with Refused(ETagMismatchError):
                    await world.store.set(first)
                with Refused(ETagMismatchError):
                    await world.store.delete(delete)
                await world.delete("key")
        except TimeoutError:
            raise ConformanceError(f"a refusal was tried again, {pattern}") from None


@cases.case()
async def options_that_are_none_are_refused(world: World) -> None:
    """A caller without a type checker can give any text."""
    nonsense: Any = "nonsense"
    for concurrency, consistency, policy in (
        (nonsense, Consistency.DEFAULT, None),
        (Concurrency.DEFAULT, nonsense, None),
        (Concurrency.DEFAULT, Consistency.DEFAULT, RetryPolicy(pattern=nonsense, threshold=2)),
    ):
        options = SetOptions(concurrency, consistency, policy)
        with Refused(InvalidRequestError):
            await world.store.set(
                SetRequest(partition=world.partition, key="key", value=b"", options=options)
            )
        delete = DeleteOptions(concurrency, consistency, policy)
        with Refused(InvalidRequestError):
            await world.store.delete(DeleteRequest(partition=world.partition, key="key", options=delete))
    expect_equal(await world.value("key"), None, "value")
