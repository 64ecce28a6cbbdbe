"""The etcd store when something breaks: the server, the wire, the room that it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from persistence import (
    ABSENT,
    CheckRequest,
    CommitOutcomeUnknownError,
    DeleteRequest,
    ETagMismatchError,
    GetRequest,
    SetRequest,
    StoreUnavailableError,
    TransactionTooLargeError,
)
from persistence.proto import etcd_pb2
from persistence.stores.etcd import EtcdStore, from_url
from tests.conftest import NewServer
from tests.support.relay import Fault, Relay
from tests.support.servers import Server
from tests.support.servers._etcd import EtcdServer
from tests.support.servers._etcd_cluster import EtcdMember, etcd_cluster, together

pytestmark = pytest.mark.server

ServerOf = Callable[[str], Server]


def put(key: str, value: bytes = b"", *, etag: str | None = None, ttl: int = 0) -> SetRequest:
    metadata = {"ttlInSeconds": str(ttl)}
    return SetRequest(partition="p", key=key, value=value, etag=etag, metadata=metadata)


async def value_of(store: EtcdStore, key: str) -> bytes | None:
    return (await store.get(GetRequest(partition="p", key=key))).data


async def etag_of(store: EtcdStore, key: str) -> str | None:
    return (await store.get(GetRequest(partition="p", key=key))).etag


@asynccontextmanager
async def relayed(
    server: Server, url: str, options: str = ""
) -> AsyncIterator[tuple[Relay, EtcdStore, EtcdStore]]:
    """A relay, a store behind it, and one that reaches the same place directly."""
    async with Relay.to(server.port) as relay:
        through = urlsplit(url)._replace(netloc=f"127.0.0.1:{relay.port}").geturl() + options
        async with from_url(through) as store, from_url(url) as direct:
            yield relay, store, direct


@pytest.fixture
async def broken(server_of: ServerOf) -> AsyncIterator[tuple[Relay, EtcdStore, EtcdStore]]:
    server = server_of("etcd")
    async with relayed(server, server.fresh_url()) as everything:
        yield everything


Broken = tuple[Relay, EtcdStore, EtcdStore]


async def test_commit_whose_reply_is_lost_took_place_once(broken: Broken) -> None:
    relay, store, direct = broken
    relay.plan(b"the commit", Fault.LOSE_REPLY)
    etag = await store.multi([CheckRequest("p", "key", ABSENT), put("key", b"the commit")])
    assert relay.struck.is_set()
    assert await etag_of(direct, "key") == etag
    await store.set(put("key", b"the next one", etag=etag))


async def test_reply_that_is_lost_is_made_up_for_each_multi_of_the_batch(broken: Broken) -> None:
    relay, store, direct = broken
    old = await store.multi([put("changed"), put("deleted"), put("kept")])
    new = await store.multi([put("changed")])
    relay.plan(b"the commit", Fault.LOSE_REPLY)
    outcomes = await asyncio.gather(
        store.multi([put("key", b"the commit")]),
        store.multi([CheckRequest("p", "kept", old), put("changed", etag=old)]),
        store.multi([DeleteRequest(partition="p", key="deleted", etag=old)]),
        store.multi([CheckRequest("p", "kept", old)]),
        store.multi([CheckRequest("p", "kept", ABSENT), put("never")]),
        return_exceptions=True,
    )
    assert relay.struck.is_set()
    assert outcomes[0] == await etag_of(direct, "key")
    refused = outcomes[1]
    assert isinstance(refused, ETagMismatchError)
    assert refused.key == "changed"
    assert new in str(refused)
    assert outcomes[2] == outcomes[3] == ""
    assert isinstance(outcomes[4], ETagMismatchError)
    assert await value_of(direct, "deleted") is None
    assert await value_of(direct, "never") is None
    assert await etag_of(direct, "changed") == new


async def test_commit_that_is_lost_on_the_way_is_made_again(broken: Broken) -> None:
    relay, store, direct = broken
    relay.plan(b"the commit", Fault.LOSE_REQUEST)
    etag = await store.multi([put("key", b"the commit", ttl=100)])
    assert relay.struck.is_set()
    assert await etag_of(direct, "key") == etag


async def test_deletion_whose_reply_is_lost_is_not_done_twice(broken: Broken) -> None:
    relay, store, direct = broken
    await store.set(put("the key", b"first"))
    relay.plan(b"the key", Fault.LOSE_REPLY)
    deletion = asyncio.create_task(store.delete(DeleteRequest(partition="p", key="the key")))
    await relay.struck.wait()
    while await value_of(direct, "the key") is not None:  # noqa: ASYNC110  the server tells nobody
        await asyncio.sleep(0)
    await direct.set(put("the key", b"second"))
    await deletion
    assert await value_of(direct, "the key") == b"second"


async def test_commit_that_comes_late_is_refused_once_it_was_given_up(broken: Broken) -> None:
    relay, store, direct = broken
    await store.multi([put("key", b"before")])
    relay.plan(b"the commit", Fault.HOLD_REQUEST)
    await store.multi([put("key", b"the commit")])
    await direct.set(put("key", b"newer"))
    assert await relay.release()
    # Nobody tells when the server has dealt with the copy that was held; it takes it less than this.
    for number in range(30):
        await direct.set(put(f"{number}"))
    assert await value_of(direct, "key") == b"newer"


async def test_outcome_that_cannot_be_found_out_is_said_to_be_unknown(server_of: ServerOf) -> None:
    server = server_of("etcd")
    impatient = "&connect_timeout=0.5&request_timeout=0.5"
    async with relayed(server, server.fresh_url(), impatient) as (relay, store, direct):
        await store.set(put("before"))
        relay.plan(b"the commit", Fault.LOSE_REPLY)
        commit = asyncio.create_task(store.set(put("key", b"the commit")))
        await relay.struck.wait()
        await relay.refuse()
        with pytest.raises(CommitOutcomeUnknownError):
            await commit
        with pytest.raises(StoreUnavailableError):
            await store.set(put("while it is away"))
        assert await value_of(direct, "while it is away") is None
        await relay.listen()
        await store.set(put("after"))
        assert await value_of(store, "before") == b""


async def test_rows_of_a_lost_reply_keep_their_lease(broken: Broken) -> None:
    relay, store, direct = broken
    relay.plan(b"the commit", Fault.LOSE_REPLY)
    await store.multi([put("key", b"the commit", ttl=1000)])
    assert relay.struck.is_set()
    found = await direct.get(GetRequest(partition="p", key="key"))
    assert "ttlExpireTime" in found.metadata


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.LOSE_REQUEST])
async def test_lease_whose_grant_got_no_answer_is_the_one_that_is_used(
    broken: Broken, server_of: ServerOf, fault: Fault
) -> None:
    relay, store, direct = broken
    server = server_of("etcd")
    assert isinstance(server, EtcdServer)

    def leases() -> set[str]:
        answer = server.gateway.call("/v3/lease/leases", {})
        return {lease["ID"] for lease in answer.get("leases", [])}

    await store.set(put("before", ttl=7654320))
    before = leases()
    # Everything in a request comes in this order, the name of the lease last.
    relay.plan(etcd_pb2.LeaseGrantRequest(ttl_seconds=7654321).SerializeToString(), fault)
    await store.set(put("key", b"x", ttl=7654321))
    assert relay.struck.is_set()
    assert len(leases() - before) == 1
    row = await direct.get(GetRequest(partition="p", key="key"))
    assert (row.data, "ttlExpireTime" in row.metadata) == (b"x", True)


async def test_killed_server_is_told_at_once_and_used_again_when_it_is_back(new_server: NewServer) -> None:
    server = new_server("etcd")
    async with from_url(server.fresh_url()) as store:
        etag = await store.multi([put("key", b"1")])
        server.kill()
        for request in (store.set(put("key", b"2")), value_of(store, "key"), store.ping()):
            with pytest.raises(StoreUnavailableError, match=str(server.port)):
                await request
        server.start()
        assert await etag_of(store, "key") == etag
        await store.set(put("key", b"3", etag=etag))
        await store.ping()


async def test_commit_to_a_cluster_that_was_set_back_to_a_backup_takes_place(new_server: NewServer) -> None:
    server = new_server("etcd", durable=True)
    assert isinstance(server, EtcdServer)
    backup = server.folder.path / "backup"
    async with from_url(server.fresh_url()) as store:
        await store.set(put("key", b"in the backup"))
        server.kill()
        server.run("cp", "-a", str(server.data), str(backup))
        server.start()
        for number in range(9):
            await eventually(lambda: store.set(put(f"lost {number}")))  # noqa: B023  it is awaited at once
        server.kill()
        server.run("rm", "-r", str(server.data))
        server.run("mv", str(backup), str(server.data))
        server.start()
        await eventually(lambda: store.set(put("after", b"x")))
        assert await value_of(store, "after") == b"x"
        assert await value_of(store, "key") == b"in the backup"
        assert await value_of(store, "lost 0") is None


async def eventually(act: Callable[[], Awaitable[None]]) -> None:
    """Do something as soon as the server answers again."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await act()
            except StoreUnavailableError:
                await asyncio.sleep(0.05)


async def test_token_that_the_server_has_forgotten_is_replaced(new_server: NewServer) -> None:
    # Simple tokens are kept in the server's memory.
    server = new_server("etcd", password="secret")
    async with from_url(server.url) as store, from_url(server.url) as other:
        await store.set(put("key", b"1"))
        changes = store.watch("p", "")
        await other.set(put("seen"))
        assert (await anext(changes)).key == "seen"
        server.kill()
        server.start()
        await asyncio.gather(store.set(put("key", b"2")), value_of(store, "key"), store.ping())
        assert await value_of(other, "key") == b"2"
        assert (await anext(changes)).key == "key"


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives servers that start from now on more flags."""
    command = EtcdServer.command

    def add(*more: str) -> None:
        monkeypatch.setattr(EtcdServer, "command", lambda self: [*command(self), *more])

    return add


async def test_server_without_space_is_named_and_nothing_is_lost_or_made_up(
    new_server: NewServer, flags: Callable[..., None]
) -> None:
    flags(f"--quota-backend-bytes={1 << 20}")
    server = new_server("etcd")
    async with from_url(server.fresh_url()) as store:
        outcomes: dict[str, BaseException | None] = {}
        # The server measures ten times a second how much it has written.
        while None in [*outcomes.values()][-5:] or not outcomes:
            (outcome,) = await asyncio.gather(
                store.set(put(f"{len(outcomes)}", bytes(100_000))), return_exceptions=True
            )
            outcomes[f"{len(outcomes)}"] = outcome
        refusals = [outcome for outcome in outcomes.values() if outcome is not None]
        assert all(isinstance(outcome, StoreUnavailableError) for outcome in refusals)
        assert all("space" in str(outcome) for outcome in refusals)
        rows = {item.key async for item in store.scan("p", "", "")}
        assert rows == {key for key, outcome in outcomes.items() if outcome is None}


async def test_fewer_operations_and_bytes_are_found_out(
    new_server: NewServer, flags: Callable[..., None]
) -> None:
    flags("--max-txn-ops=20", "--max-request-bytes=60000")
    server = new_server("etcd")
    async with from_url(server.fresh_url()) as store:
        assert store.limits.operations == 18
        await store.multi([put(f"one/{number}") for number in range(18)])
        await asyncio.gather(
            *(store.multi([put(f"small/{number}"), put(f"s/{number}")]) for number in range(100))
        )
        # More in all than a request may have, each of them less.
        await asyncio.gather(*(store.set(put(f"large/{number}", bytes(20_000))) for number in range(20)))
        with pytest.raises(TransactionTooLargeError, match="too-large"):
            await store.set(put("too-large", bytes(70_000)))
        assert store.limits.value_bytes < 71_000
        keys = [item.key async for item in store.scan("p", "", "")]
        assert len(keys) == 18 + 200 + 20
        assert {
            row.data for row in await store.bulk_get([GetRequest(partition="p", key=key) for key in keys])
        } == {b"", bytes(20_000)}


async def test_server_that_comes_back_with_other_flags_is_asked_again(
    new_server: NewServer, flags: Callable[..., None]
) -> None:
    server = new_server("etcd")
    async with from_url(server.fresh_url()) as store:
        assert store.limits.operations == 100
        server.stop()
        flags("--max-txn-ops=10")
        server.start()
        await asyncio.gather(*(store.set(put(f"{number}")) for number in range(100)))
        assert (
            len(await store.bulk_get([GetRequest(partition="p", key=f"{number}") for number in range(100)]))
            == 100
        )
        assert store.limits.operations == 8


async def test_second_member_serves_when_the_first_is_away(server_of: ServerOf) -> None:
    server = server_of("etcd")
    url = server.fresh_url()
    async with Relay.to(server.port) as relay:
        hosts = f"127.0.0.1:{relay.port},127.0.0.1:{server.port}"
        async with from_url(urlsplit(url)._replace(netloc=hosts).geturl()) as store:
            changes = store.watch("p", "")
            await store.set(put("first"))
            assert (await anext(changes)).key == "first"
            await relay.refuse()
            relay.break_connections()
            await store.set(put("second"))
            assert await value_of(store, "second") == b""
            assert (await anext(changes)).key == "second"


async def test_watch_goes_on_after_its_connection_broke(broken: Broken) -> None:
    relay, store, direct = broken
    changes = store.watch("p", "key/")
    await direct.set(put("key/1"))
    assert (await anext(changes)).key == "key/1"
    await relay.refuse()
    relay.break_connections()
    await direct.set(put("key/2"))
    await direct.delete(DeleteRequest(partition="p", key="key/1"))
    await relay.listen()
    assert {(await anext(changes)).key, (await anext(changes)).key} == {"key/1", "key/2"}


async def test_watch_tells_to_look_again_when_changes_were_compacted_away(new_server: NewServer) -> None:
    server = new_server("etcd")
    assert isinstance(server, EtcdServer)
    async with relayed(server, server.fresh_url()) as (relay, store, direct):
        changes = store.watch("p", "key/")
        await direct.set(put("key/1"))
        assert (await anext(changes)).key == "key/1"
        await relay.refuse()
        relay.break_connections()
        etag = await direct.multi([put("key/2")])
        await direct.set(put("other"))
        server.gateway.call("/v3/kv/compaction", {"revision": str(int(etag, 16) + 1)})
        await relay.listen()
        assert (await anext(changes)).kind.value == "resync"
        await direct.set(put("key/3"))
        assert (await anext(changes)).key == "key/3"


@pytest.fixture
def members(new_server: NewServer) -> Iterator[list[EtcdMember]]:
    new_server("etcd").stop()  # skips the test where there is none
    with etcd_cluster() as cluster:
        yield cluster


async def test_watch_leaves_a_member_that_has_lost_the_others(
    members: list[EtcdMember], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "persistence.stores.etcd")
    first, second, third = members
    hosts = ",".join(f"127.0.0.1:{member.port}" for member in members)
    async with from_url(f"etcd://{hosts}?connect_timeout=1") as store:
        changes = store.watch("p", "")
        await store.set(put("before"))
        assert (await anext(changes)).key == "before"
        # The first one is well, has the stream, and will never tell of anything again.
        await asyncio.to_thread(together, [second.kill, third.kill])
        async with asyncio.timeout(60):
            while "no leader" not in caplog.text:  # noqa: ASYNC110  a log wakes nobody
                await asyncio.sleep(0.05)
        await asyncio.to_thread(first.kill)
        await asyncio.to_thread(together, [second.start, third.start])
        await store.set(put("after"))
        async with asyncio.timeout(60):
            assert (await anext(changes)).key == "after"
