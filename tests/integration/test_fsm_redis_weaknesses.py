"""What goes wrong where configured machines are kept on Redis by one command after the other, and does not here."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from hsm.fsm import (
    AlreadyExistsError,
    GenericStoreError,
    InvalidDataError,
    MalformedConfigurationError,
    NotFoundError,
    OutcomePendingError,
    RedisStore,
    RedisStoreOptions,
    RevisionMismatchError,
    StoreTimeoutError,
    new_event,
    new_state_machine,
)
from persistence.proto.statemachine_pb2 import Event, EventOutcome, EventRequest, FiniteStateMachine
from tests.conftest import NewServer
from tests.support.fsm.configurations import configuration, counter, orders
from tests.support.fsm.redis_world import PATIENCE, RedisWorld, raw_redis
from tests.support.raw_redis import RawRedis
from tests.support.relay import Fault, Relay
from tests.support.servers import Server

pytestmark = pytest.mark.server


def named(name: str, event_id: str) -> Event:
    event = new_event(name)
    event.event_id = event_id
    return event


@pytest.fixture(params=["valkey", "valkey-cluster"])
async def world(
    request: pytest.FixtureRequest, server_of: Callable[[str], Server], new_server: NewServer
) -> AsyncIterator[RedisWorld]:
    async with RedisWorld(raw_redis(request.param, server_of, new_server)) as world:
        yield world


@pytest.fixture
async def alone(server_of: Callable[[str], Server], new_server: NewServer) -> AsyncIterator[RedisWorld]:
    """Data on one server."""
    async with RedisWorld(raw_redis("valkey", server_of, new_server)) as world:
        yield world


# The index.


async def test_machine_is_in_one_set_whoever_was_first(world: RedisWorld) -> None:
    first, second = await world.open(), await world.open()
    await first.put_config(configuration([("s1", "s2", "a"), ("s1", "s3", "b")], name="fork"))
    machine = FiniteStateMachine(config_id="fork:v1", state="s1")
    ids = [str(number) for number in range(30)]
    await asyncio.gather(*(first.put_state_machine(id_, machine) for id_ in ids))
    # Both know the way before they start.
    await asyncio.gather(
        *(store.tx_process_event("nobody", "fork", new_event("a")) for store in (first, second))
    )

    await asyncio.gather(
        *(
            store.tx_process_event(id_, "fork", new_event(name))
            for id_ in ids
            for store, name in ((first, "a"), (second, "b"))
        )
    )

    sets = [world.raw.members(f"fsm:fork:state#{state}") for state in ("s1", "s2", "s3")]
    assert sorted(id_ for members in sets for id_ in members) == sorted(ids)
    for state, members in zip(("s1", "s2", "s3"), sets, strict=True):
        assert await first.get_all_in_state("fork", state) == sorted(members)
    assert sets[0] == set()


async def test_putting_an_existing_machine_moves_it(world: RedisWorld) -> None:
    store = await world.open()
    await store.put_config(orders())
    await store.put_state_machine("1", new_state_machine(orders()))

    await store.put_state_machine("1", FiniteStateMachine(config_id="orders:v1", state="shipped"))

    assert world.raw.members("fsm:orders:state#start") == set()
    assert world.raw.members("fsm:orders:state#shipped") == {"1"}


async def test_put_and_event_do_not_overwrite_each_other(world: RedisWorld) -> None:
    stores = [await world.open() for _ in range(2)]
    await stores[0].put_config(counter())
    await stores[0].put_state_machine("1", new_state_machine(counter()))
    taken: list[bool] = []

    async def put() -> None:
        for _ in range(20):
            machine = await stores[0].get_state_machine("1", "counters")
            machine.history.add().details = "put"
            try:
                await stores[0].put_state_machine("1", machine, expected_revision=machine.revision)
                taken.append(True)
            except RevisionMismatchError:
                taken.append(False)

    async def send() -> None:
        for _ in range(40):
            outcome = await stores[1].tx_process_event("1", "counters", new_event("next"))
            assert outcome.code == EventOutcome.Ok

    await asyncio.gather(put(), send())

    machine = await stores[0].get_state_machine("1", "counters")
    details = [event.details for event in machine.history]
    assert (details.count("put"), details.count("")) == (taken.count(True), 40)
    assert machine.revision == len(machine.history) + 1


# One transaction, and one outcome.


async def test_lost_request_changes_nothing_at_all(alone: RedisWorld) -> None:
    keeper = await alone.open()
    await keeper.put_config(orders())
    await keeper.put_state_machine("1", new_state_machine(orders()))
    before = alone.raw.get("fsm:orders#1")

    async with Relay.to(alone.raw.server.port) as relay, _through(relay, alone.raw, max_retries=1) as store:
        await store.health()
        relay.plan(b"keep-this-together", Fault.LOSE_REQUEST)
        with pytest.raises(GenericStoreError) as lost:
            await store.tx_process_event("1", "orders", named("accept", "keep-this-together-e1"))
        assert lost.value.__cause__ is not None

    assert alone.raw.get("fsm:orders#1") == before
    assert alone.raw.members("fsm:orders:state#start") == {"1"}
    for call in (keeper.get_event, keeper.get_outcome_for_event):
        with pytest.raises(NotFoundError) as unknown:
            await call("keep-this-together-e1", "orders")
        assert not isinstance(unknown.value, OutcomePendingError)


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY])
async def test_event_whose_answer_was_lost_is_processed_once(alone: RedisWorld, fault: Fault) -> None:
    keeper = await alone.open()
    await keeper.put_config(counter())
    await keeper.put_state_machine("1", new_state_machine(counter()))

    async with Relay.to(alone.raw.server.port) as relay, _through(relay, alone.raw) as store:
        # The first request with this in it asks for the outcome, the second one commits.
        await store.tx_process_event("1", "counters", named("stay", "other"))
        for number in range(2):
            relay.plan(b"o'clock-%d" % number, fault)
            outcome = await store.tx_process_event("1", "counters", named("stay", f"o'clock-{number}"))
            assert relay.struck.is_set()
            assert outcome.code == EventOutcome.Ok

    machine = await keeper.get_state_machine("1", "counters")
    assert [event.event_id for event in machine.history] == ["other", "o'clock-0", "o'clock-1"]


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY])
async def test_writes_whose_answer_was_lost_are_not_taken_for_those_of_others(
    alone: RedisWorld, fault: Fault
) -> None:
    async with Relay.to(alone.raw.server.port) as relay, _through(relay, alone.raw) as store:
        await store.health()
        relay.plan(b"starting", fault)
        made = configuration([("starting", "done", "go")], name="once")
        await store.put_config(made)
        assert relay.struck.is_set()
        relay.plan(b"starting", fault)
        assert await store.put_state_machine("1", new_state_machine(made), expected_revision=0) == 1
        assert relay.struck.is_set()
        # Not the request that looks, which has no state in it.
        relay.plan(b"delete", fault)
        await store.delete_state_machine("1", "once")
        assert relay.struck.is_set()

    assert alone.raw.get("fsm:once#1") is None
    assert alone.raw.members("fsm:once:state#starting") == set()


async def test_redelivery_after_a_success_does_not_become_a_failure(world: RedisWorld) -> None:
    store, other = await world.open(), await world.open()
    await store.put_config(orders())
    await store.put_state_machine("1", new_state_machine(orders()))
    event = named("accept", "e1")

    first = await store.tx_process_event("1", "orders", event)
    await store.tx_process_event("1", "orders", named("ship", "e2"))
    again = await other.tx_process_event("1", "orders", event)  # "accept" is not allowed any more

    assert first == again == await store.get_outcome_for_event("e1", "orders")
    assert first.code == EventOutcome.Ok


async def test_redelivery_after_a_refusal_stays_a_refusal(world: RedisWorld) -> None:
    store, other = await world.open(), await world.open()
    await store.put_config(orders())
    await store.put_state_machine("1", new_state_machine(orders()))

    first = await store.tx_process_event("1", "orders", named("ship", "e1"))
    await store.tx_process_event("1", "orders", named("accept", "e2"))
    again = await other.tx_process_event("1", "orders", named("ship", "e1"))  # by now it is allowed

    assert first == again
    assert again.code == EventOutcome.TransitionNotAllowed
    assert (await store.get_state_machine("1", "orders")).state == "accepted"


async def test_self_loop_happens_once_however_often_it_is_delivered(world: RedisWorld) -> None:
    stores = [await world.open() for _ in range(3)]
    await stores[0].put_config(counter())
    await stores[0].put_state_machine("1", new_state_machine(counter()))

    outcomes = await asyncio.gather(
        *(store.tx_process_event("1", "counters", named("stay", "e1")) for store in stores for _ in range(5))
    )

    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert len((await stores[0].get_state_machine("1", "counters")).history) == 1


async def test_first_outcome_is_kept_from_whoever_comes_later(world: RedisWorld) -> None:
    store = await world.open()
    await store.add_event_outcome("e1", "orders", EventOutcome(id="1"))

    with pytest.raises(AlreadyExistsError):
        await store.add_event_outcome("e1", "orders", EventOutcome(code=EventOutcome.InternalError, id="1"))

    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok


async def test_one_writer_of_a_configuration_wins_and_its_sets_are_whole(world: RedisWorld) -> None:
    stores = [await world.open() for _ in range(4)]
    variants = [configuration([("a", f"b{number}", "go")], name="race") for number in range(4)]

    answers = await asyncio.gather(
        *(store.put_config(variant) for store, variant in zip(stores, variants, strict=True)),
        return_exceptions=True,
    )

    (winner,) = [number for number, answer in enumerate(answers) if answer is None]
    assert world.raw.get("configs#race:v1") == variants[winner].SerializeToString()
    assert world.raw.members("configs#race") == {"race:v1"}


# What an error says.


async def test_missing_configuration_is_told_from_a_missing_machine(world: RedisWorld) -> None:
    store = await world.open()
    await store.put_config(orders())
    await store.put_state_machine("1", FiniteStateMachine(config_id="orders:gone", state="start"))

    missing = await store.tx_process_event("1", "orders", new_event("accept"))
    nobody = await store.tx_process_event("no body", "orders", new_event("accept"))
    unknown = await store.tx_process_event("1", "no such", new_event("accept"))

    assert missing.code == EventOutcome.ConfigurationNotFound
    assert nobody.code == EventOutcome.FsmNotFound
    assert unknown.code == EventOutcome.ConfigurationNotFound
    for outcome in (missing, nobody, unknown):
        assert "fsm:" not in outcome.details
        assert "configs#" not in outcome.details


READS: list[Callable[[RedisStore], Awaitable[object]]] = [
    lambda store: store.get_all_configs(),
    lambda store: store.get_all_versions("orders"),
    lambda store: store.get_all_in_state("orders", "start"),
    lambda store: store.get_all_machines("orders"),
    lambda store: store.get_config("orders:v1"),
    lambda store: store.get_state_machine("1", "orders"),
    lambda store: store.get_event("e1", "orders"),
    lambda store: store.get_outcome_for_event("e1", "orders"),
    lambda store: store.pending_events("1", "orders"),
    lambda store: store.tx_process_event("1", "orders", new_event("accept")),
    lambda store: store.health(),
]


async def test_server_that_is_gone_is_no_empty_list_and_nothing_is_not_found(new_server: NewServer) -> None:
    server = new_server("valkey")
    raw = RawRedis(server)
    async with RedisStore(raw.address, timeout=PATIENCE, max_retries=2) as store:
        await store.health()
        server.kill()
        for read in READS:
            with pytest.raises(GenericStoreError, match=f"127.0.0.1:{server.port}.* failed") as gone:
                await read(store)
            assert gone.value.__cause__ is not None
        server.start()
        await store.health()


async def test_server_that_hangs_is_a_time_out_after_as_many_attempts_as_were_allowed(
    new_server: NewServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = new_server("valkey")
    async with RedisStore(RawRedis(server).address, timeout=PATIENCE, max_retries=3) as store:
        await store.health()
        server.pause()
        store.set_timeout(timedelta(milliseconds=50))
        try:
            for read in READS:
                caplog.clear()
                with pytest.raises(StoreTimeoutError, match=r"3 attempts .*no answer within 0.05 s"):
                    await read(store)
                assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
            caplog.clear()
            store.set_log_level(logging.ERROR)
            with pytest.raises(StoreTimeoutError):
                await store.health()
            assert caplog.records == []
        finally:
            server.resume()
        store.set_timeout(PATIENCE)
        await store.health()


async def test_server_that_hangs_for_a_moment_is_waited_for(new_server: NewServer) -> None:
    server = new_server("valkey")
    async with RedisStore(
        RawRedis(server).address, timeout=timedelta(milliseconds=300), max_retries=100
    ) as store:
        await store.put_config(orders())
        server.pause()
        waiting = asyncio.create_task(store.put_state_machine("1", new_state_machine(orders())))
        await asyncio.sleep(0.4)  # longer than one attempt
        server.resume()

        assert await waiting == 1


async def test_key_of_another_kind_is_told_as_such(alone: RedisWorld) -> None:
    alone.raw.put("fsm:orders:state#start", b"no set")
    alone.raw.put("configs", b"no set")
    alone.raw.add("fsm:orders#2", "no machine")
    store = await alone.open()

    for call in (
        store.get_all_configs(),
        store.get_all_in_state("orders", "start"),
        store.put_state_machine("1", new_state_machine(orders())),
        store.get_state_machine("2", "orders"),
        store.put_config(orders()),
    ):
        with pytest.raises(GenericStoreError, match="WRONGTYPE"):
            await call
    # What could not be done as a whole was not done in part.
    assert alone.raw.keys() == {"fsm:orders:state#start", "configs", "fsm:orders#2"}


# Names.


@pytest.mark.parametrize("name", ["a:b", "orders:v3", "a#b", "a:state", "", "{a}", "a b"])
async def test_names_whose_keys_could_be_those_of_others_are_refused(world: RedisWorld, name: str) -> None:
    store = await world.open()

    with pytest.raises(MalformedConfigurationError):
        await store.put_config(orders(name=name))

    assert world.raw.keys() == set()


async def test_namespaces_share_no_key(world: RedisWorld) -> None:
    tenants = [await world.open(namespace=name) for name in ("default", "a", "a#fsm", "{b}", "b")]
    for number, tenant in enumerate(tenants):
        await tenant.put_config(orders())
        await tenant.put_state_machine(f"{number}", new_state_machine(orders()))

    for number, tenant in enumerate(tenants):
        assert await tenant.get_all_machines("orders") == [f"{number}"]
        assert await tenant.get_all_configs() == ["orders"]


# Size.


async def test_large_sets_are_read_by_pages(world: RedisWorld) -> None:
    ids = {f"{number:05}" for number in range(5000)}
    world.raw.add("configs", *(f"c{id_}" for id_ in ids))
    store = await world.open()
    await store.put_config(orders())

    assert len(await store.get_all_configs()) == 5001

    if not world.raw.is_cluster:  # there each member is looked at
        world.raw.add("fsm:orders:state#start", *ids)
        first = await store.get_all_in_state("orders", "start", limit=3)
        assert first == ["00000", "00001", "00002"]
        assert await store.get_all_in_state("orders", "start", after=first[-1], limit=2) == ["00003", "00004"]
        assert set(await store.get_all_in_state("orders", "start")) == ids
        commands = world.raw.execute("INFO", "commandstats")
        assert isinstance(commands, bytes)
        assert b"cmdstat_sscan" in commands


async def test_nothing_lives_for_ever_that_was_given_a_time(world: RedisWorld) -> None:
    hour = timedelta(hours=1)
    store = await world.open(event_ttl=hour, outcome_ttl=2 * hour, history_cap=2)
    await store.put_config(counter())
    await store.put_state_machine("1", new_state_machine(counter()))
    await store.accept_event(EventRequest(config="counters", id="1", event=named("next", "accepted")))
    waits = world.raw.execute("TTL", "events:counters#accepted")

    for number in range(4):
        await store.tx_process_event("1", "counters", named("stay", f"{number}"))
    await store.process_events(await store.pending_events("1", "counters"))

    assert waits == -1  # as long as it is pending
    for event_id in ("0", "accepted"):
        event = world.raw.execute("TTL", f"events:counters#{event_id}")
        outcome = world.raw.execute("TTL", f"events:counters:outcome#{event_id}")
        assert isinstance(event, int)
        assert isinstance(outcome, int)
        assert 0 < event <= 3600 < outcome <= 7200
    machine = await store.get_state_machine("1", "counters")
    assert (len(machine.history), machine.history_dropped, machine.revision) == (2, 3, 6)
    assert world.raw.execute("TTL", "fsm:counters#1") == -1


# Making one.


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("", {}),
        ("localhost:port", {}),
        ("a:1,b:2", {}),
        (":1", {}),
        ("a:1", {"max_retries": 0}),
        ("a:1", {"timeout": timedelta(seconds=-1)}),
        ("a:1", {"is_cluster": True, "db": 1}),
        ("a:1", {"options": RedisStoreOptions(event_ttl=timedelta(seconds=-1))}),
    ],
)
def test_store_that_could_not_work_is_not_made(address: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidDataError):
        RedisStore(address, **options)  # type: ignore[arg-type]  # whatever is wrong


def test_defaults_are_those_of_the_origin() -> None:
    store = RedisStore.with_defaults("localhost:6379")

    assert store.get_timeout() == timedelta(milliseconds=200)


def test_missing_client_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)

    with pytest.raises(GenericStoreError, match=r"hsm-toolkit\[redis\]"):
        RedisStore("localhost:6379")


async def test_closed_store_says_so(alone: RedisWorld) -> None:
    store = await alone.open()
    await store.aclose()

    with pytest.raises(GenericStoreError, match="closed"):
        await store.get_all_configs()


async def test_node_of_a_cluster_is_recognised(
    server_of: Callable[[str], Server], new_server: NewServer
) -> None:
    raw = raw_redis("valkey-cluster", server_of, new_server)
    async with RedisStore(raw.address.partition(",")[0], timeout=PATIENCE) as store:
        answers = await asyncio.gather(
            *(store.get_all_versions(f"{number}") for number in range(50)), return_exceptions=True
        )
    refused = [answer for answer in answers if isinstance(answer, GenericStoreError)]
    assert refused  # some keys are elsewhere
    assert all("is_cluster=True" in str(error) for error in refused)


@pytest.mark.parametrize("kind", ["redis", "valkey-cluster"])
async def test_tls_and_password_are_used(kind: str, new_server: NewServer) -> None:
    server = new_server(kind, tls=True, password="secret")
    raw = RawRedis(server)
    options = RedisStoreOptions(tls=True, tls_ca=str(server.ca_file), password="secret")
    async with RedisStore(raw.address, raw.is_cluster, timeout=PATIENCE, options=options) as store:
        await store.put_config(orders())
        assert await store.get_all_configs() == ["orders"]


async def test_server_that_is_not_to_be_trusted_or_does_not_trust_us_is_not_used(
    new_server: NewServer,
) -> None:
    server = new_server("redis", tls=True, password="secret")
    raw = RawRedis(server)
    for wrong in (
        RedisStoreOptions(password="secret"),
        RedisStoreOptions(tls=True, password="secret"),
        RedisStoreOptions(tls=True, tls_ca=str(server.ca_file), password="other"),
    ):
        async with RedisStore(raw.address, timeout=PATIENCE, options=wrong, max_retries=1) as store:
            with pytest.raises(GenericStoreError):
                await store.get_all_configs()


def _through(relay: Relay, raw: RawRedis, *, max_retries: int = 3) -> RedisStore:
    return RedisStore(f"127.0.0.1:{relay.port}", False, raw.database, PATIENCE, max_retries)
