"""A cluster of Valkey: slots that move while they are used, and nodes that go and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from persistence import (
    ChangeKind,
    CommitOutcomeUnknownError,
    ETagMismatchError,
    GetRequest,
    SetRequest,
    StoreUnavailableError,
)
from persistence.stores.redis import RedisStore, from_url
from tests.conftest import NewServer
from tests.support.redis_commands import execute
from tests.support.servers import Server
from tests.support.servers._cluster import ClusterNode, ValkeyCluster
from tests.support.servers._redis import find_valkey

pytestmark = pytest.mark.server
PARTITIONS: Final = [f"p{number}" for number in range(12)]


@pytest.fixture
async def cluster(new_server: NewServer) -> ValkeyCluster:
    server = new_server("valkey-cluster", durable=True)
    assert isinstance(server, ValkeyCluster)
    return server


@pytest.fixture
async def nodes(cluster: ValkeyCluster) -> AsyncIterator[list[Redis]]:
    clients = [Redis(port=node.port, protocol=2, decode_responses=True) for node in cluster.nodes]
    try:
        yield clients
    finally:
        for client in clients:
            await client.aclose()


def put(partition: str, key: str, value: bytes, etag: str | None = None) -> SetRequest:
    return SetRequest(partition=partition, key=key, value=value, etag=etag)


async def increment(store: RedisStore, partition: str, turn: int) -> None:
    while True:
        found = await store.get(GetRequest(partition=partition, key="counter"))
        value = b"%d" % (int(found.data or b"0") + 1)
        try:
            await store.multi(
                [put(partition, "counter", value, found.etag), put(partition, f"row{turn:05}", b"x")]
            )
        except ETagMismatchError:
            continue
        return


async def goes_on(store: RedisStore, partition: str) -> bool:
    """Whether a partition can be written to."""
    try:
        await store.multi([put(partition, "key", b"y")])
    except (StoreUnavailableError, CommitOutcomeUnknownError):
        return False
    return True


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something has come to be."""
    async with asyncio.timeout(60):
        while not await check():  # noqa: ASYNC110  the servers tell nobody
            await asyncio.sleep(0.05)


class Migration:
    """A slot on its way from one node to another, a step at a time."""

    def __init__(self, slot: int, source: Redis, target: Redis, nodes: list[Redis]) -> None:
        self.slot, self.source, self.target, self.nodes = slot, source, target, nodes

    async def begin(self) -> None:
        source, target = (
            await execute(self.source, "CLUSTER", "MYID"),
            await execute(self.target, "CLUSTER", "MYID"),
        )
        await execute(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", source)
        await execute(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", target)

    async def move(self, count: int) -> bool:
        keys = await execute(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, count)
        if keys:
            port = self.target.connection_pool.connection_kwargs["port"]
            await execute(self.source, "MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
        return bool(keys)

    async def end(self) -> None:
        target = await execute(self.target, "CLUSTER", "MYID")
        for node in (self.target, self.source, *self.nodes):
            await execute(node, "CLUSTER", "SETSLOT", self.slot, "NODE", target)


async def owner_of(nodes: list[Redis], cluster: ValkeyCluster, slot: int) -> int:
    for first, last, master, *_ in await execute(nodes[0], "CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return [node.port for node in cluster.nodes].index(int(master[1]))
    raise AssertionError(slot)


async def migration(partition: str, url: str, cluster: ValkeyCluster, nodes: list[Redis]) -> Migration:
    prefix = url.partition("prefix=")[2]
    slot = int(key_slot(f"{prefix}{{{partition}}}i".encode()))
    owner = await owner_of(nodes, cluster, slot)
    return Migration(slot, nodes[owner], nodes[(owner + 1) % len(nodes)], nodes)


async def test_slots_move_under_load_and_nothing_is_lost_or_hidden(
    cluster: ValkeyCluster, nodes: list[Redis]
) -> None:
    url = cluster.fresh_url()
    turns = 30
    async with from_url(url) as store, from_url(url) as other:
        for partition in PARTITIONS:
            await store.multi([put(partition, f"old{number:03}", b"x") for number in range(100)])

        async def look(partition: str) -> None:
            """Rows that are there all the time are seen all the time."""
            while True:
                old = [item.key async for item in other.scan(partition, "old", "old~")]
                assert len(old) == 100
                assert (await other.get(GetRequest(partition=partition, key="old050"))).data == b"x"
                await asyncio.sleep(0)

        async def work(partition: str) -> None:
            for turn in range(turns):
                await increment(store if turn % 2 else other, partition, turn)

        async def move() -> None:
            for partition in PARTITIONS[:6]:
                moving = await migration(partition, url, cluster, nodes)
                await moving.begin()
                while await moving.move(20):  # noqa: ASYNC110  the load goes on in between
                    await asyncio.sleep(0.005)
                await moving.end()

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            lookers = [group.create_task(look(partition)) for partition in PARTITIONS[:6]]
            mover = group.create_task(move())
            await asyncio.gather(*(work(partition) for partition in PARTITIONS))
            await mover
            for looker in lookers:
                looker.cancel()
        for partition in PARTITIONS:
            found = await store.get(GetRequest(partition=partition, key="counter"))
            assert found.data == b"%d" % turns
            assert len([item async for item in store.scan(partition, "row", "row~")]) == turns


async def test_slot_that_stays_half_moved_is_busy_and_nothing_is_hidden(
    cluster: ValkeyCluster, nodes: list[Redis]
) -> None:
    url = cluster.fresh_url()
    async with from_url(f"{url}&request_timeout=0.3") as store:
        await store.multi([put("p", f"old{number:03}", b"x") for number in range(100)])
        moving = await migration("p", url, cluster, nodes)
        await moving.begin()
        for _ in range(10):
            await moving.move(10)
            try:
                found = [item.key async for item in store.scan("p", "", "")]
            except StoreUnavailableError:
                continue
            assert len(found) == 100
        with pytest.raises(StoreUnavailableError, match="busy"):
            await store.multi([put("p", "new", b"x")])
        await moving.move(1000)
        await moving.end()
        await store.multi([put("p", "new", b"x")])
        assert len([item async for item in store.scan("p", "", "")]) == 101


async def test_watch_follows_a_slot(cluster: ValkeyCluster, nodes: list[Redis]) -> None:
    url = cluster.fresh_url()
    async with from_url(url) as store, asyncio.timeout(60):
        await store.multi([put("p", "key", b"x")])
        watch, still = store.watch("p", ""), store.watch("q", "")
        assert (await anext(watch)).kind is ChangeKind.RESYNC
        assert (await anext(still)).kind is ChangeKind.RESYNC
        moving = await migration("p", url, cluster, nodes)
        await moving.begin()
        await moving.move(1000)
        await moving.end()
        assert (await anext(watch)).kind is ChangeKind.RESYNC
        await store.multi([put("p", "key", b"y")])
        while (change := await anext(watch)).kind is ChangeKind.RESYNC:
            pass
        assert change.key == "key"
        await store.multi([put("q", "key", b"y")])
        while (change := await anext(still)).kind is ChangeKind.RESYNC:
            pass
        assert change.key == "key"


async def test_node_that_is_gone_takes_only_its_partitions_along(cluster: ValkeyCluster) -> None:
    async with from_url(f"{cluster.fresh_url()}&connect_timeout=1") as store:
        for partition in PARTITIONS:
            await store.multi([put(partition, "key", b"x")])
        cluster.nodes[1].kill()
        outcomes = await asyncio.gather(
            *(store.get(GetRequest(partition=partition, key="key")) for partition in PARTITIONS),
            return_exceptions=True,
        )
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert all(isinstance(error, StoreUnavailableError) for error in failed)
        assert 0 < len(failed) < len(PARTITIONS)
        cluster.nodes[1].start()
        for partition in PARTITIONS:
            await eventually(partial(goes_on, store, partition))


async def test_node_that_hangs_holds_up_nobody_elses_partitions(cluster: ValkeyCluster) -> None:
    async with from_url(cluster.fresh_url()) as store:
        for partition in PARTITIONS:
            await store.multi([put(partition, "key", b"x")])
        port = cluster.nodes[1].port
        cluster.nodes[1].pause()
        try:
            there: list[asyncio.Task[object]] = []
            elsewhere: list[asyncio.Task[object]] = []
            for partition in PARTITIONS:
                tasks = there if store._place_of(partition) == ("127.0.0.1", port) else elsewhere
                for work in (
                    store.get(GetRequest(partition=partition, key="key")),
                    store.multi([put(partition, "key", b"y")]),
                ):
                    tasks.append(asyncio.create_task(work))
            assert there
            await asyncio.gather(*elsewhere)
            assert not any(task.done() for task in there)
        finally:
            cluster.nodes[1].resume()
        await asyncio.gather(*there)


async def test_replica_takes_over_and_the_store_goes_on(cluster: ValkeyCluster, nodes: list[Redis]) -> None:
    replica = ClusterNode("valkey-cluster/replica", find_valkey(tls=False), cluster.nodes[0].options)
    replica.start()
    try:
        replica.call(["CLUSTER", "MEET", "127.0.0.1", str(cluster.port), str(cluster.nodes[0].bus_port)])
        master = await execute(nodes[1], "CLUSTER", "MYID")
        async with Redis(port=replica.port, protocol=2, decode_responses=True) as client:

            async def follows() -> bool:
                try:
                    await execute(client, "CLUSTER", "REPLICATE", master)
                except ResponseError:  # it has not heard of all nodes yet
                    return False
                return True

            async def replicates() -> bool:
                return (await client.info("replication")).get("master_link_status") == "up"

            await eventually(follows)
            await eventually(replicates)
        url = f"{cluster.fresh_url()}&connect_timeout=1"
        async with from_url(url) as store, asyncio.timeout(60):
            watches = {partition: store.watch(partition, "") for partition in PARTITIONS}
            for partition in PARTITIONS:
                await store.multi([put(partition, "key", b"x")])
            await asyncio.gather(*(anext(watch) for watch in watches.values()))
            cluster.nodes[1].kill()
            for partition in PARTITIONS:
                await eventually(partial(goes_on, store, partition))
                found = await store.get(GetRequest(partition=partition, key="key"))
                assert found.data in {b"x", b"y"}
                while (await anext(watches[partition])).key != "key":
                    await store.multi([put(partition, "key", b"z")])
    finally:
        replica.destroy()


async def test_every_partition_and_the_pings_reach_all_nodes(
    server_of: Callable[[str], Server],
) -> None:
    async with from_url(server_of("valkey-cluster").fresh_url()) as store:
        await asyncio.gather(*(store.multi([put(f"p{number}", "key", b"x")]) for number in range(100)))
        found = await store.bulk_get([GetRequest(partition=f"p{number}", key="key") for number in range(100)])
        assert [entry.data for entry in found] == [b"x"] * 100
        await store.ping()


async def test_url_of_the_other_kind_is_told(server_of: Callable[[str], Server]) -> None:
    cluster, single = server_of("valkey-cluster"), server_of("valkey")
    with pytest.raises(StoreUnavailableError, match=r"redis\+cluster://"):
        await from_url(f"redis://127.0.0.1:{cluster.port}").__aenter__()
    with pytest.raises(StoreUnavailableError, match="cluster support disabled"):
        await from_url(f"redis+cluster://127.0.0.1:{single.port}").__aenter__()


async def test_further_nodes_are_asked_if_the_first_is_gone(cluster: ValkeyCluster) -> None:
    cluster.nodes[0].kill()
    others = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes[1:])
    url = f"{cluster.fresh_url()}&connect_timeout=1"
    with pytest.raises(StoreUnavailableError, match=str(cluster.nodes[0].port)):
        await from_url(url).__aenter__()
    with pytest.raises(StoreUnavailableError, match=str(cluster.nodes[0].port)):
        # They know where the slots were, but one of the nodes does not answer.
        await from_url(f"{url}&nodes={others}").__aenter__()
