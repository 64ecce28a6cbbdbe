"""Configured machines on a cluster: what follows from a decision is written by whoever comes next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from hsm.fsm import GenericStoreError, InvalidDataError, RedisStore, new_event, new_state_machine
from persistence.proto.statemachine_pb2 import EventOutcome, FiniteStateMachine
from tests.conftest import NewServer
from tests.crash.fsm_cluster_kills import run_kills
from tests.support.fsm.configurations import orders
from tests.support.fsm.redis_world import RedisWorld, raw_redis
from tests.support.raw_redis import RawRedis
from tests.support.servers import Server

pytestmark = pytest.mark.server


@pytest.fixture
async def world(server_of: Callable[[str], Server], new_server: NewServer) -> AsyncIterator[RedisWorld]:
    async with RedisWorld(raw_redis("valkey-cluster", server_of, new_server)) as world:
        yield world


@pytest.fixture
async def store(world: RedisWorld) -> RedisStore:
    store = await world.open()
    await store.put_config(orders())
    await store.put_state_machine("1", new_state_machine(orders()))
    return store


@pytest.fixture
def raw(world: RedisWorld) -> RawRedis:
    return world.raw


def test_process_may_be_killed_between_any_two_commands(
    server_of: Callable[[str], Server], new_server: NewServer
) -> None:
    """While it sends an event; `tests/crash/fsm_cluster_kills.py` has everything else, too."""
    server = raw_redis("valkey-cluster", server_of, new_server).server

    kills, problems = run_kills(server, actions=["send"])

    assert problems == []
    assert kills["send"] > 4


async def test_keys_of_one_machine_are_spread_over_nodes(store: RedisStore, raw: RawRedis) -> None:
    """Else the other tests here would show little."""
    for number in range(20):
        await store.put_state_machine(f"{number}", new_state_machine(orders()))
        await store.tx_process_event(f"{number}", "orders", new_event("accept"))

    counts = raw.execute_everywhere("DBSIZE")

    assert len(counts) == 3
    assert all(isinstance(count, int) and count > 5 for count in counts)


async def test_member_that_a_crash_has_left_behind_is_left_out_and_removed(
    store: RedisStore, raw: RawRedis
) -> None:
    raw.add("fsm:orders:state#shipped", "1", "nobody")

    assert await store.get_all_in_state("orders", "shipped") == []
    assert raw.members("fsm:orders:state#shipped") == set()
    assert await store.get_all_in_state("orders", "start") == ["1"]


async def test_member_on_its_way_is_not_removed(store: RedisStore, raw: RawRedis) -> None:
    # Somebody is about to move the machine in its next turn, which is the second.
    raw.add("fsm:orders:state#accepted", "1")
    raw.execute("HSET", "hsm:{fsm:orders:state#accepted}:turns", "1", "2")

    assert await store.get_all_in_state("orders", "accepted") == []
    assert raw.members("fsm:orders:state#accepted") == {"1"}
    # The machine got into its second turn, but by another way.
    await store.put_state_machine("1", FiniteStateMachine(config_id="orders:v1", state="shipped"))

    assert await store.get_all_in_state("orders", "accepted") == []
    assert raw.members("fsm:orders:state#accepted") == set()


async def test_decision_whose_maker_has_died_is_followed_by_the_next_event(
    store: RedisStore, raw: RawRedis
) -> None:
    outcome = EventOutcome(id="1", config="orders", revision=2).SerializeToString()
    raw.put("fsm:orders#1", FiniteStateMachine(config_id="orders:v1", state="accepted").SerializeToString())
    journal = "hsm:{fsm:orders#1}:journal"
    raw.execute(
        "HSET", journal, "turn", "2", "move 2", "start", "event e1", b"0 %d %b" % (len(outcome), outcome)
    )
    raw.add("fsm:orders:state#accepted", "1")

    assert (await store.tx_process_event("1", "orders", new_event("ship"))).code == EventOutcome.Ok

    assert (await store.get_outcome_for_event("e1", "orders")).revision == 2
    assert raw.members("fsm:orders:state#start") == set()
    assert raw.members("fsm:orders:state#accepted") == set()
    assert raw.members("fsm:orders:state#shipped") == {"1"}
    assert raw.execute("HKEYS", journal) == [b"turn"]


async def test_sets_are_repaired_on_a_cluster_too(store: RedisStore, raw: RawRedis) -> None:
    raw.add("fsm:orders:state#shipped", "1")
    raw.execute("SREM", "fsm:orders:state#start", "1")

    assert await store.repair("orders") == 2

    assert raw.members("fsm:orders:state#start") == {"1"}
    assert raw.members("fsm:orders:state#shipped") == set()


async def test_braces_that_choose_a_slot_are_served(store: RedisStore) -> None:
    for id_ in ("{a}", "x{a}y", "{a", "x{a}{b}"):
        await store.put_state_machine(id_, new_state_machine(orders()))
        assert (await store.tx_process_event(id_, "orders", new_event("accept"))).code == EventOutcome.Ok

    assert set(await store.get_all_in_state("orders", "accepted")) == {"{a}", "x{a}y", "{a", "x{a}{b}"}


async def test_braces_that_leave_no_room_beside_a_key_are_refused(store: RedisStore, raw: RawRedis) -> None:
    with pytest.raises(InvalidDataError, match="braces"):
        await store.put_state_machine("a}b", new_state_machine(orders()))

    assert raw.get("fsm:orders#a}b") is None


async def test_journal_of_a_machine_that_is_not_there_expires(store: RedisStore, raw: RawRedis) -> None:
    await store.tx_process_event("nobody", "orders", new_event("accept"))
    await store.tx_process_event("1", "orders", new_event("accept"))

    left = raw.execute("TTL", "hsm:{fsm:orders#nobody}:journal")
    assert isinstance(left, int)
    assert left > 0
    assert raw.execute("TTL", "hsm:{fsm:orders#1}:journal") == -1
    await store.put_state_machine("nobody", new_state_machine(orders()))
    assert raw.execute("TTL", "hsm:{fsm:orders#nobody}:journal") == -1


async def test_store_that_is_closed_before_it_knows_the_nodes_connects_to_none(raw: RawRedis) -> None:
    store = RedisStore(raw.address, True)
    asking = asyncio.create_task(store.get_all_configs())
    await asyncio.sleep(0)  # it asks by now where the slots are
    await store.aclose()

    with pytest.raises(GenericStoreError, match="closed meanwhile"):
        await asking
