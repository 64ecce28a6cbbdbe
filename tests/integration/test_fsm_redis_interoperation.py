"""Data that other programs keep on Redis is served, and ours can be read by them.

What others write and read is made here from the layout of keys and the numbers of the fields alone: commands
over a plain connection, and protobuf bytes put together by hand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from hsm.fsm import InvalidDataError, NotFoundError, OutcomePendingError, new_event, source_of
from hsm.fsm.redis import RedisStore
from persistence.proto.statemachine_pb2 import (
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
)
from tests.conftest import NewServer
from tests.support.fsm.configurations import orders
from tests.support.fsm.redis_world import RedisWorld, raw_redis
from tests.support.raw_protobuf import decode, encode, text_of, texts_of
from tests.support.raw_redis import RawRedis
from tests.support.servers import Server

pytestmark = pytest.mark.server

GO, BACK, AROUND = (
    encode((1, source), (2, target), (3, event))
    for source, target, event in (("off", "on", "go"), ("on", "off", "back"), ("on", "on", "around"))
)
LAMP = encode((1, "off"), (1, "on"), (2, GO), (2, BACK), (2, AROUND), (3, "off"), (4, "lamps"), (5, "v7"))
"""Configuration: states=1, transitions=2 (from=1, to=2, event=3), starting_state=3, name=4, version=5."""


def raw_event(event_id: str, name: str, *, source: str = "", target: str = "") -> bytes:
    """Event: event_id=1, timestamp=2 (seconds=1, nanos=2), transition=3, originator=4, details=5."""
    transition = [(number, text) for number, text in ((1, source), (2, target), (3, name)) if text]
    return encode(
        (1, event_id),
        (2, encode((1, 1_700_000_000), (2, 5))),
        (3, encode(*transition)),
        (4, "somebody"),
        (5, '{"watt": 5}'),
    )


def raw_machine(state: str, *history: bytes) -> bytes:
    """FiniteStateMachine: config_id=1, state=2, history=3."""
    return encode((1, "lamps:v7"), (2, state), *((3, event) for event in history))


def named(name: str, event_id: str) -> Event:
    event = new_event(name)
    event.event_id = event_id
    return event


@pytest.fixture(params=["valkey", "redis", "valkey-cluster"])
async def world(
    request: pytest.FixtureRequest, server_of: Callable[[str], Server], new_server: NewServer
) -> AsyncIterator[RedisWorld]:
    async with RedisWorld(raw_redis(request.param, server_of, new_server)) as world:
        yield world


@pytest.fixture
def raw(world: RedisWorld) -> RawRedis:
    """A database in which another program keeps two lamps."""
    raw = world.raw
    raw.put("configs#lamps:v7", LAMP)
    raw.add("configs#lamps", "lamps:v7")
    raw.add("configs", "lamps")
    raw.put("fsm:lamps#hall", raw_machine("off"))
    raw.put("fsm:lamps#attic", raw_machine("on", raw_event("e0", "go", source="off", target="on")))
    raw.add("fsm:lamps:state#off", "hall")
    raw.add("fsm:lamps:state#on", "attic")
    return raw


@pytest.fixture
async def store(world: RedisWorld) -> RedisStore:
    return await world.open()


async def test_configuration_of_others_is_read(raw: RawRedis, store: RedisStore) -> None:
    assert await store.get_all_configs() == ["lamps"]
    assert await store.get_all_versions("lamps") == ["lamps:v7"]
    configuration = await store.get_config("lamps:v7")
    assert configuration.SerializeToString() == LAMP
    assert [source_of(each) for each in configuration.transitions] == ["off", "on", "on"]


async def test_machines_of_others_are_read_and_listed(raw: RawRedis, store: RedisStore) -> None:
    attic = await store.get_state_machine("attic", "lamps")

    assert (attic.config_id, attic.state, attic.history[0].details) == ("lamps:v7", "on", '{"watt": 5}')
    assert attic.history[0].timestamp.nanos == 5
    assert await store.get_all_in_state("lamps", "off") == ["hall"]
    assert await store.get_all_in_state("lamps", "on") == ["attic"]
    assert await store.get_all_machines("lamps") == ["attic", "hall"]


async def test_machine_of_others_goes_on_where_it_was(raw: RawRedis, store: RedisStore) -> None:
    outcome = await store.tx_process_event("attic", "lamps", new_event("back", details="late"))

    assert outcome.code == EventOutcome.Ok
    value = raw.get("fsm:lamps#attic")
    assert value is not None
    assert text_of(value, 1) == "lamps:v7"
    assert text_of(value, 2) == "off"
    first, second = [field for number, field in decode(value) if number == 3]
    assert first == raw_event("e0", "go", source="off", target="on")
    assert isinstance(second, bytes)
    assert text_of(second, 5) == "late"
    (move,) = [field for number, field in decode(second) if number == 3]
    assert move == BACK
    assert raw.members("fsm:lamps:state#off") == {"hall", "attic"}
    assert raw.members("fsm:lamps:state#on") == set()


async def test_event_and_outcome_are_read_by_others(raw: RawRedis, store: RedisStore) -> None:
    event = new_event("go", originator="us")

    await store.tx_process_event("hall", "lamps", event)

    value = raw.get(f"events:lamps#{event.event_id}")
    assert value is not None
    assert (text_of(value, 1), text_of(value, 4)) == (event.event_id, "us")
    value = raw.get(f"events:lamps:outcome#{event.event_id}")
    assert value is not None
    # EventOutcome: code=1 (0, and so left out), details=2, id=3, config=4.
    assert [number for number, _ in decode(value) if number < 100] == [3, 4]
    assert (text_of(value, 3), text_of(value, 4)) == ("hall", "lamps")


async def test_refusal_is_read_by_others(raw: RawRedis, store: RedisStore) -> None:
    await store.tx_process_event("hall", "lamps", named("back", "e1"))

    value = raw.get("events:lamps:outcome#e1")
    assert value is not None
    assert dict(decode(value))[1] == 4  # TransitionNotAllowed
    assert raw.get("fsm:lamps#hall") == raw_machine("off")
    assert raw.members("fsm:lamps:state#off") == {"hall"}


async def test_configuration_and_machine_of_ours_are_read_by_others(
    world: RedisWorld, store: RedisStore
) -> None:
    configuration = orders()
    await store.put_config(configuration)
    await store.put_state_machine("1", FiniteStateMachine(config_id="orders:v1", state="start"))

    raw = world.raw
    assert raw.members("configs") == {"orders"}
    assert raw.members("configs#orders") == {"orders:v1"}
    value = raw.get("configs#orders:v1")
    assert value is not None
    assert texts_of(value, 1) == list(configuration.states)
    assert (text_of(value, 3), text_of(value, 4), text_of(value, 5)) == ("start", "orders", "v1")
    transitions = [field for number, field in decode(value) if number == 2]
    assert transitions[0] == encode((1, "start"), (2, "accepted"), (3, "accept"))
    value = raw.get("fsm:orders#1")
    assert value is not None
    assert [(number, field) for number, field in decode(value) if number < 100] == [
        (1, b"orders:v1"),
        (2, b"start"),
    ]
    assert raw.members("fsm:orders:state#start") == {"1"}


async def test_all_other_keys_begin_with_our_name(raw: RawRedis, store: RedisStore) -> None:
    before = raw.keys()
    request = EventRequest(config="lamps", id="hall", event=named("go", "e1"))
    await store.accept_event(request)
    await store.process_events(await store.pending_events("hall", "lamps"))

    new = raw.keys() - before
    assert {key for key in new if not key.startswith("hsm:")} == {
        "events:lamps#e1",
        "events:lamps:outcome#e1",
    }


async def test_first_outcome_is_that_of_others(raw: RawRedis, store: RedisStore) -> None:
    raw.put("events:lamps#e1", raw_event("e1", "go"))
    raw.put("events:lamps:outcome#e1", encode((1, 5), (2, "out of order"), (3, "hall"), (4, "lamps")))

    outcome = await store.tx_process_event("hall", "lamps", named("go", "e1"))

    assert (outcome.code, outcome.details) == (EventOutcome.InternalError, "out of order")
    assert raw.get("fsm:lamps#hall") == raw_machine("off")
    assert await store.get_outcome_for_event("e1", "lamps") == outcome


async def test_event_of_others_without_an_outcome_is_pending(raw: RawRedis, store: RedisStore) -> None:
    raw.put("events:lamps#e1", raw_event("e1", "go"))

    assert (await store.get_event("e1", "lamps")).originator == "somebody"
    with pytest.raises(OutcomePendingError):
        await store.get_outcome_for_event("e1", "lamps")
    with pytest.raises(NotFoundError) as unknown:
        await store.get_outcome_for_event("e2", "lamps")
    assert not isinstance(unknown.value, OutcomePendingError)

    await store.tx_process_event("hall", "lamps", await store.get_event("e1", "lamps"))

    assert (await store.get_outcome_for_event("e1", "lamps")).code == EventOutcome.Ok
    assert raw.get("events:lamps#e1") == raw_event("e1", "go")  # as it was sent


async def test_others_may_write_between_two_of_our_events(raw: RawRedis, store: RedisStore) -> None:
    await store.tx_process_event("hall", "lamps", new_event("go"))
    ours = raw.get("fsm:lamps#hall")
    assert ours is not None
    # They keep what they know, and may keep or drop the rest.
    for kept in (ours, encode(*[field for field in decode(ours) if field[0] < 100])):
        fields = [(2, b"off") if number == 2 else (number, value) for number, value in decode(kept)]
        raw.put(
            "fsm:lamps#hall", encode(*fields, (3, raw_event("theirs", "back", source="on", target="off")))
        )
        raw.execute("SREM", "fsm:lamps:state#on", "hall")
        raw.add("fsm:lamps:state#off", "hall")

        assert (await store.get_state_machine("hall", "lamps")).state == "off"
        assert await store.get_all_in_state("lamps", "off") == ["hall"]
        assert (await store.tx_process_event("hall", "lamps", new_event("go"))).code == EventOutcome.Ok

        assert raw.members("fsm:lamps:state#off") == set()
        assert raw.members("fsm:lamps:state#on") == {"attic", "hall"}
        machine = await store.get_state_machine("hall", "lamps")
        assert [each.transition.event for each in machine.history] == ["go", "back", "go"]


async def test_fields_of_later_versions_survive(raw: RawRedis, store: RedisStore) -> None:
    later = ((150, 7), (151, "new"))
    raw.put("fsm:lamps#hall", raw_machine("off") + encode(*later))
    raw.put("configs#lamps:v7", LAMP + encode(*later))

    assert (await store.tx_process_event("hall", "lamps", named("go", "e1"))).code == EventOutcome.Ok

    value = raw.get("fsm:lamps#hall")
    assert value is not None
    assert {(150, 7), (151, b"new")} <= set(decode(value))


async def test_others_do_not_see_what_we_add(raw: RawRedis, store: RedisStore) -> None:
    await store.tx_process_event("hall", "lamps", new_event("go"))

    value = raw.get("fsm:lamps#hall")
    assert value is not None
    # A reader that knows nothing above 99 is left with a message of the fields it knows.
    assert {number for number, _ in decode(value)} == {1, 2, 3, 100}
    assert dict(decode(value))[100] == 2


async def test_names_that_others_chose_are_served(world: RedisWorld, store: RedisStore) -> None:
    raw = world.raw
    raw.put("configs#my lamps:1 beta", LAMP)
    raw.put("fsm:my lamps#a b#c", encode((1, "my lamps:1 beta"), (2, "off")))
    raw.add("fsm:my lamps:state#off", "a b#c")

    assert (await store.tx_process_event("a b#c", "my lamps", named("go", "e 1"))).code == EventOutcome.Ok

    assert raw.members("fsm:my lamps:state#on") == {"a b#c"}
    assert raw.get("events:my lamps:outcome#e 1") is not None


async def test_damage_is_told_from_absence(raw: RawRedis, store: RedisStore) -> None:
    for key in ("fsm:lamps#hall", "events:lamps#e1", "events:lamps:outcome#e1", "configs#lamps:v8"):
        raw.put(key, b"\xff\xff\xff")

    for call in (
        store.get_state_machine("hall", "lamps"),
        store.tx_process_event("hall", "lamps", named("go", "e2")),
        store.get_event("e1", "lamps"),
        store.get_outcome_for_event("e1", "lamps"),
        store.get_config("lamps:v8"),
    ):
        with pytest.raises(InvalidDataError, match="holds no"):
            await call


async def test_repair_leaves_alone_what_is_no_text(raw: RawRedis, store: RedisStore) -> None:
    raw.execute("SET", b"fsm:lamps#\xff", b"")
    raw.add("fsm:lamps:state#on", "hall")  # hall is off

    assert await store.repair("lamps") == 1

    assert raw.execute("GET", b"fsm:lamps#\xff") == b""


async def test_damaged_notification_holds_up_no_other(raw: RawRedis, world: RedisWorld) -> None:
    store = await world.open(notify=True)
    for number in range(3):
        await store.accept_event(
            EventRequest(config="lamps", id="hall", event=named("explode", f"e{number}"))
        )
    await store.process_events(await store.pending_events("hall", "lamps"))
    key = "hsm:fsm:{lamps}:notifications"
    second = [each async for each in store.notifications()][1].position
    raw.execute("ZREMRANGEBYSCORE", key, second, second)
    raw.execute("ZADD", key, second, b"\xff\xff")

    told = [each.response.event_id async for each in store.notifications()]

    assert told == ["e0", "e2"]


async def test_sets_that_others_left_wrong_are_repaired(raw: RawRedis, store: RedisStore) -> None:
    raw.add("fsm:lamps:state#on", "hall", "nobody")  # hall is off
    raw.execute("SREM", "fsm:lamps:state#on", "attic")  # attic is on

    assert await store.repair("lamps") == 3

    assert raw.members("fsm:lamps:state#on") == {"attic"}
    assert raw.members("fsm:lamps:state#off") == {"hall"}
    assert await store.repair("lamps") == 0
