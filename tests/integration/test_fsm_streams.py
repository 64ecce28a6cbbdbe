"""Events from streams of Valkey, outcomes to them: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import attrs
import pytest
from redis.asyncio import Redis

from hsm.fsm.database import DatabaseOptions, DatabaseStore
from hsm.fsm.service import FSMServer, QueueError, encode_request
from hsm.fsm.service.redis_streams import StreamOptions, redis_stream, stream_publisher
from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import (
    EventOutcome,
    EventRequest,
    EventResponse,
    FiniteStateMachine,
)
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.service import Faulty, event_for, options, until
from tests.support.redis_commands import execute
from tests.support.servers import Server
from tests.support.servers._server import random_name

pytestmark = pytest.mark.server

FAST = StreamOptions(
    dead_letters="", wait=timedelta(milliseconds=20), idle=timedelta(seconds=60), delete=False
)


class Streams:
    """A service between streams of a server."""

    def __init__(self, url: str, client: Redis, name: str) -> None:
        self.url = url
        self.client = client
        self.name = name
        self.events, self.dead, self.outcomes = (f"{name}:{each}" for each in ("events", "dead", "outcomes"))

    def how(self, **changes: Any) -> StreamOptions:
        return attrs.evolve(FAST, **({"dead_letters": self.dead} | changes))

    @asynccontextmanager
    async def service(
        self, store: Any, *, publish: bool = True, most_deliveries: int = 0, **changes: Any
    ) -> AsyncIterator[FSMServer]:
        async with AsyncExitStack() as stack:
            how = self.how(**changes)
            queue = await stack.enter_async_context(redis_stream(self.url, self.events, how))
            publisher = None
            if publish:
                publisher = await stack.enter_async_context(stream_publisher(self.url, self.outcomes))
            server = FSMServer(
                cast("StoreManager", store),
                options(most_deliveries=most_deliveries),
                queues=[queue],
                publisher=publisher,
            )
            yield await stack.enter_async_context(server)

    async def send(self, body: EventRequest | str) -> str:
        text = body if isinstance(body, str) else encode_request(body)
        id_: bytes = await execute(self.client, "XADD", self.events, "*", "body", text)
        return id_.decode()

    async def entries(self, stream: str) -> list[dict[str, str]]:
        found: Any = await self.client.xrange(stream)
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]

    async def responses(self) -> list[EventResponse]:
        return [
            EventResponse.FromString(base64.b64decode(entry["body"]))
            for entry in await self.entries(self.outcomes)
        ]

    async def left(self) -> int:
        """Entries that the group has not acknowledged."""
        (group,) = await self.client.xinfo_groups(self.events)
        return int(group["pending"]) + int(group["lag"] or 0)

    async def drained(self) -> None:
        async def nothing_left() -> bool:
            return await self.left() == 0

        await until(nothing_left)

    async def consumers(self) -> list[str]:
        return [each["name"].decode() for each in await self.client.xinfo_consumers(self.events, "hsm")]


@pytest.fixture(params=["valkey", "redis"])
async def streams(
    request: pytest.FixtureRequest, server_of: Callable[[str], Server]
) -> AsyncIterator[Streams]:
    url = server_of(request.param).fresh_url().partition("?")[0]
    client = Redis.from_url(url)
    try:
        yield Streams(url, client, random_name())
    finally:
        await client.aclose()


@pytest.fixture
async def store(streams: Streams) -> AsyncIterator[DatabaseStore]:
    async with DatabaseStore(f"memory://{streams.name}", options=DatabaseOptions(notify=True)) as opened:
        await opened.put_config(orders())
        await opened.put_config(counter())
        yield opened


async def put_orders(store: StoreManager, *ids: str) -> None:
    for id_ in ids:
        await store.put_state_machine(id_, FiniteStateMachine(config_id="orders:v1", state="start"))


async def test_entries_move_the_machine_in_the_order_of_the_stream(
    streams: Streams, store: DatabaseStore
) -> None:
    machines = [f"o{number}" for number in range(10)]
    await put_orders(store, *machines)
    for event in ("accept", "ship", "deliver", "return"):
        for machine in machines:
            await streams.send(event_for(machine, event, event_id=f"{machine}-{event}"))
    async with streams.service(store):
        await streams.drained()

    for machine in machines:
        found = await store.get_state_machine(machine, "orders")
        assert [event.transition.event for event in found.history] == ["accept", "ship", "deliver"]
    assert {each.event_id for each in await streams.responses()} == {f"{each}-return" for each in machines}
    assert await streams.consumers() == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("no Base64!", "no Base64"),
        (encode_request(EventRequest(config="orders", id="o1")), "no event"),
        (encode_request(event_for("", "accept", event_id="e")), "no statemachine ID specified"),
        (encode_request(event_for("o1", "accept", config="no-such")), "there is no configuration"),
    ],
)
async def test_poison_goes_to_the_dead_letters_with_the_reason(
    streams: Streams, store: DatabaseStore, body: str, reason: str
) -> None:
    await put_orders(store, "o1")
    id_ = await streams.send(body)
    await execute(streams.client, "XADD", streams.events, "*", "other", "field")
    await streams.send(event_for("o1", "accept"))
    async with streams.service(store):
        await streams.drained()

    first, second = sorted(await streams.entries(streams.dead), key=lambda each: each["message_id"])
    assert reason in first.pop("reason")
    assert first == {"body": body, "stream": streams.events, "message_id": id_}
    assert second["reason"] == "the message has no body"
    assert (await store.get_state_machine("o1", "orders")).state == "accepted"


async def test_entries_of_a_dead_consumer_are_claimed(streams: Streams, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    await execute(streams.client, "XGROUP", "CREATE", streams.events, "hsm", "0", "MKSTREAM")
    await streams.send(event_for("o1", "accept", event_id="e1"))
    taken = await streams.client.xreadgroup("hsm", "dead", {streams.events: ">"})
    assert taken
    async with streams.service(store, idle=timedelta(milliseconds=50)):
        await streams.drained()

    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok


async def test_consumer_of_the_same_name_goes_on_with_its_own(streams: Streams, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    await execute(streams.client, "XGROUP", "CREATE", streams.events, "hsm", "0", "MKSTREAM")
    for event in ("accept", "ship"):
        await streams.send(event_for("o1", event, event_id=event))
    assert await streams.client.xreadgroup("hsm", "one", {streams.events: ">"}, count=1)
    async with streams.service(store, consumer="one", idle=timedelta(hours=1)):
        await streams.drained()

    found = await store.get_state_machine("o1", "orders")
    assert [event.transition.event for event in found.history] == ["accept", "ship"]
    assert await streams.consumers() == ["one"]


async def test_entry_that_is_claimed_again_and_again_goes_to_the_dead_letters(
    streams: Streams, store: DatabaseStore
) -> None:
    await execute(streams.client, "XGROUP", "CREATE", streams.events, "hsm", "0", "MKSTREAM")
    await streams.send(event_for("o1", "accept", event_id="e1"))
    assert await streams.client.xreadgroup("hsm", "dead", {streams.events: ">"})
    for _ in range(3):
        await execute(streams.client, "XAUTOCLAIM", streams.events, "hsm", "dead", 0, "0")
    async with streams.service(store, idle=timedelta(milliseconds=50), most_deliveries=4):
        await streams.drained()

    (letter,) = await streams.entries(streams.dead)
    assert letter["reason"] == "the message was delivered 4 times without being acknowledged"


async def test_entries_are_held_while_their_events_wait(streams: Streams, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    faulty = Faulty(store)
    faulty.break_down("process_events")
    await streams.send(event_for("o1", "accept", event_id="e1"))
    idle = timedelta(milliseconds=300)
    async with streams.service(faulty, idle=idle):

        async def is_accepted() -> bool:
            return "process_events" in faulty.calls

        await until(is_accepted)
        async with redis_stream(
            streams.url, streams.events, streams.how(idle=idle, consumer="other")
        ) as other:
            received: list[Any] = []
            loop = asyncio.get_running_loop()
            end = loop.time() + 3 * idle.total_seconds()
            while loop.time() < end:
                received += await other.receive(10)
        faulty.recover()
        await streams.drained()

    assert received == []
    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok


async def test_stopping_gives_back_what_is_not_accepted(streams: Streams, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    faulty = Faulty(store)
    faulty.break_down("accept_event")
    await streams.send(event_for("o1", "accept", event_id="e1"))
    async with streams.service(faulty, idle=timedelta(hours=1)):

        async def tried() -> bool:
            return "accept_event" in faulty.calls

        await until(tried)
    assert await streams.left() == 1
    # At once, though a dead consumer's entries would be its own for an hour.
    async with streams.service(store, idle=timedelta(hours=1)):
        await streams.drained()
    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok


async def test_entry_that_comes_again_changes_nothing(streams: Streams, store: DatabaseStore) -> None:
    await store.put_state_machine("c", FiniteStateMachine(config_id="counters:v1", state="s0"))
    for _ in range(5):
        await streams.send(event_for("c", "stay", config="counters", event_id="e1"))
    async with streams.service(store):
        await streams.drained()

    assert len((await store.get_state_machine("c", "counters")).history) == 1


async def test_acknowledged_entries_are_deleted_on_demand(streams: Streams, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    for event in ("accept", "ship"):
        await streams.send(event_for("o1", event))
    async with streams.service(store, delete=True):
        await streams.drained()

    assert await streams.entries(streams.events) == []


async def test_stream_that_is_deleted_begins_anew(streams: Streams, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    async with streams.service(store):
        await streams.send(event_for("o1", "accept"))
        await streams.drained()
        await streams.client.delete(streams.events)
        await streams.send(event_for("o1", "ship", event_id="e2"))

        async def shipped() -> bool:
            return (await store.get_state_machine("o1", "orders")).state == "shipped"

        await until(shipped)


async def test_several_services_share_a_group(streams: Streams, store: DatabaseStore) -> None:
    for number in range(10):
        await store.put_state_machine(f"c{number}", FiniteStateMachine(config_id="counters:v1", state="s0"))
    for number in range(300):
        await streams.send(event_for(f"c{number % 10}", "next", config="counters", event_id=f"e{number}"))
    async with streams.service(store), streams.service(store), streams.service(store):
        await streams.drained()

    machines = [await store.get_state_machine(f"c{number}", "counters") for number in range(10)]
    assert [len(machine.history) for machine in machines] == [30] * 10


async def test_outcomes_are_trimmed_on_demand(streams: Streams) -> None:
    async with stream_publisher(streams.url, streams.outcomes, most_entries=10) as publisher:
        for number in range(2000):
            await publisher.publish(EventResponse(event_id=str(number)))

    assert await streams.client.xlen(streams.outcomes) < 1000


async def test_server_that_is_away_is_told() -> None:
    with pytest.raises(QueueError, match="events"):
        async with redis_stream("redis://127.0.0.1:1/0", "events"):
            pass


async def test_key_that_holds_something_else_is_told(streams: Streams) -> None:
    await streams.client.set(streams.events, "text")
    with pytest.raises(QueueError, match=streams.events):
        async with redis_stream(streams.url, streams.events):
            pass
