"""Connections to Redis that break in the middle of a commit: the store finds out what became of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace

import pytest

from persistence import (
    CommitOutcomeUnknownError,
    DeleteRequest,
    ETagMismatchError,
    GetRequest,
    Operation,
    SetRequest,
    StoreUnavailableError,
)
from persistence.stores.redis import RedisStore, from_url, writing
from persistence.stores.redis.scripts import COMMIT
from tests.support.relay import Fault, Relay
from tests.support.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.parametrize("kind", ["redis", "valkey"])]


@pytest.fixture
async def relay(kind: str, server_of: Callable[[str], Server]) -> AsyncIterator[Relay]:
    async with Relay.to(server_of(kind).port) as relay:
        yield relay


@pytest.fixture
async def store(kind: str, server_of: Callable[[str], Server], relay: Relay) -> AsyncIterator[RedisStore]:
    server = server_of(kind)
    url = server.fresh_url().replace(f":{server.port}", f":{relay.port}")
    async with from_url(f"{url}&connect_timeout=1&request_timeout=2") as store:
        yield store


def put(key: str, value: bytes = b"value", etag: str | None = None) -> SetRequest:
    return SetRequest(partition="p", key=key, value=value, etag=etag)


async def value(store: RedisStore, key: str) -> bytes | None:
    return (await store.get(GetRequest(partition="p", key=key))).data


async def struck(relay: Relay, fault: Fault, store: RedisStore, operations: Sequence[Operation]) -> str:
    relay.plan(COMMIT.digest, fault)
    answer = await store.multi(operations)
    assert relay.struck.is_set()
    return answer


async def test_commit_whose_reply_is_lost_was_carried_out_once(store: RedisStore, relay: Relay) -> None:
    etag = await struck(relay, Fault.LOSE_REPLY, store, [put("key")])
    found = await store.get(GetRequest(partition="p", key="key"))
    assert (found.data, found.etag) == (b"value", etag)


async def test_first_write_whose_reply_is_lost_is_not_refused_by_itself(
    store: RedisStore, relay: Relay
) -> None:
    first = await store.multi([put("key")])
    second = await struck(relay, Fault.LOSE_REPLY, store, [put("key", b"second", first)])
    assert await store.multi([put("key", b"third", second)])


async def test_delete_whose_reply_is_lost_was_carried_out(store: RedisStore, relay: Relay) -> None:
    etag = await store.multi([put("key")])
    assert (
        await struck(relay, Fault.LOSE_REPLY, store, [DeleteRequest(partition="p", key="key", etag=etag)])
        == ""
    )
    assert await value(store, "key") is None


async def test_refusal_whose_reply_is_lost_is_a_refusal(store: RedisStore, relay: Relay) -> None:
    await store.multi([put("key")])
    with pytest.raises(ETagMismatchError):
        await struck(relay, Fault.LOSE_REPLY, store, [put("other"), put("key", b"wrong", "0" * 16)])
    assert await value(store, "other") is None


async def test_each_of_several_has_its_own_outcome(store: RedisStore, relay: Relay) -> None:
    await store.multi([put("key")])
    relay.plan(COMMIT.digest, Fault.LOSE_REPLY)
    multis: list[list[Operation]] = [
        [put("a")],
        [put("key", b"wrong", "0" * 16)],
        [put("b")],
        [DeleteRequest(partition="p", key="key")],
    ]
    outcomes = await asyncio.gather(*(store.multi(multi) for multi in multis), return_exceptions=True)
    assert relay.struck.is_set()
    assert [type(outcome) for outcome in outcomes] == [str, ETagMismatchError, str, str]
    assert [await value(store, key) for key in ("a", "b", "key")] == [b"value", b"value", None]


async def test_commit_that_never_arrived_is_sent_again(store: RedisStore, relay: Relay) -> None:
    etag = await store.multi([put("key")])
    assert await struck(relay, Fault.LOSE_REQUEST, store, [put("key", b"new", etag)])
    assert await value(store, "key") == b"new"


@pytest.mark.parametrize("clock", ["time", "monotonic"])
async def test_what_was_sent_long_ago_is_unknown_by_whichever_clock(
    store: RedisStore, relay: Relay, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = itertools.count(0, 3600)
    other = {"time": "monotonic", "monotonic": "time"}[clock]
    monkeypatch.setattr(writing, "time", SimpleNamespace(**{clock: hour.__next__, other: lambda: 0.0}))
    with pytest.raises(CommitOutcomeUnknownError):
        await struck(relay, Fault.LOSE_REQUEST, store, [put("key")])


async def test_commit_that_arrives_late_has_no_effect(store: RedisStore, relay: Relay) -> None:
    await struck(relay, Fault.HOLD_REQUEST, store, [put("key", b"again")])
    etag = await store.multi([put("key", b"newer")])
    await relay.release()
    # The server ends a connection when it reads from it: after this it has.
    await store.ping()
    found = await store.get(GetRequest(partition="p", key="key"))
    assert (found.data, found.etag) == (b"newer", etag)


async def test_outcome_is_unknown_if_nobody_can_be_asked(store: RedisStore, relay: Relay) -> None:
    await store.multi([put("key")])
    await relay.refuse()
    with pytest.raises(CommitOutcomeUnknownError, match=f"127.0.0.1:{relay.port}"):
        await struck(relay, Fault.LOSE_REPLY, store, [put("key", b"new")])
    with pytest.raises(StoreUnavailableError):
        await store.multi([put("other")])
    await relay.listen()
    assert await store.multi([put("other")])
    assert await value(store, "key") == b"new"


async def test_idle_connections_that_the_server_has_closed_go_unnoticed(
    store: RedisStore, relay: Relay
) -> None:
    for _ in range(3):
        await store.multi([put("key")])
        assert await value(store, "key") == b"value"
        relay.break_connections()


async def test_storm_of_broken_connections_loses_no_increment(store: RedisStore, relay: Relay) -> None:
    await store.multi([put("counter", b"0")])

    async def count(times: int) -> None:
        for _ in range(times):
            while True:
                found = await store.get(GetRequest(partition="p", key="counter"))
                assert found.data is not None
                try:
                    await store.multi([put("counter", b"%d" % (int(found.data) + 1), found.etag)])
                except ETagMismatchError:
                    continue
                break

    async def strike() -> None:
        while True:
            for fault in (Fault.LOSE_REPLY, Fault.LOSE_REQUEST):
                relay.plan(COMMIT.digest, fault)
                await relay.struck.wait()

    striker = asyncio.create_task(strike())
    await asyncio.gather(*(count(10) for _ in range(5)))
    striker.cancel()
    assert await value(store, "counter") == b"50"
