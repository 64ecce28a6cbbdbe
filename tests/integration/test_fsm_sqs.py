"""Events from queues of Amazon's protocol, outcomes to them: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest
from aiobotocore.session import AioSession

from hsm.fsm.database import DatabaseOptions, DatabaseStore
from hsm.fsm.service import FSMServer, QueueError
from hsm.fsm.service.sqs import SQSOptions, sqs_publisher, sqs_queue
from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import Event, EventOutcome, EventRequest, FiniteStateMachine
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.service import Faulty, event_for, options, until
from tests.support.sqs import ENVIRONMENT, REGION, Queues, queues, sqs_server

_names = itertools.count()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with sqs_server() as url:
        yield url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def session() -> AioSession:
    return AioSession()


@pytest.fixture
async def amazon(endpoint: str, session: AioSession) -> AsyncIterator[Queues]:
    async with queues(endpoint, session) as opened:
        yield opened


class World:
    """A service between queues."""

    def __init__(self, amazon: Queues, endpoint: str, name: str, session: AioSession) -> None:
        self.amazon = amazon
        self.endpoint = endpoint
        self.name = name
        self.session = session
        self.events = self.dead = self.outcomes = ""

    async def open(self, suffix: str = "") -> World:
        self.events = await self.amazon.new(f"{self.name}-events{suffix}")
        self.dead = await self.amazon.new(f"{self.name}-dead{suffix}")
        self.outcomes = await self.amazon.new(f"{self.name}-outcomes{suffix}")
        return self

    def where(self, visibility: float = 30) -> SQSOptions:
        return SQSOptions(
            endpoint_url=self.endpoint,
            region=REGION,
            wait=timedelta(seconds=1),
            visibility=timedelta(seconds=visibility),
        )

    @asynccontextmanager
    async def service(
        self, store: Any, *, visibility: float = 30, publish: bool = True, dead: bool = True, **changes: Any
    ) -> AsyncIterator[FSMServer]:
        async with AsyncExitStack() as stack:
            queue = await stack.enter_async_context(
                sqs_queue(
                    self.events,
                    self.where(visibility),
                    dead_letters=self.dead if dead else None,
                    session=self.session,
                )
            )
            publisher = None
            if publish:
                publisher = await stack.enter_async_context(
                    sqs_publisher(self.outcomes, self.where(), session=self.session)
                )
            server = FSMServer(
                cast("StoreManager", store), options(**changes), queues=[queue], publisher=publisher
            )
            yield await stack.enter_async_context(server)

    async def is_empty(self) -> bool:
        return await self.amazon.count(self.events) == (0, 0)

    async def drained(self) -> None:
        await until(self.is_empty)


@pytest.fixture
async def world(amazon: Queues, endpoint: str, session: AioSession) -> World:
    return await World(amazon, endpoint, f"q{next(_names)}", session).open()


@pytest.fixture
async def store(world: World) -> AsyncIterator[DatabaseStore]:
    async with DatabaseStore(f"memory://{world.name}", options=DatabaseOptions(notify=True)) as opened:
        await opened.put_config(orders())
        await opened.put_config(counter())
        yield opened


async def put_orders(store: StoreManager, *ids: str) -> None:
    for id_ in ids:
        await store.put_state_machine(id_, FiniteStateMachine(config_id="orders:v1", state="start"))


async def test_event_of_a_message_moves_the_machine(world: World, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    await world.amazon.send(world.events, event_for("o1", "accept", event_id="e1"))
    async with world.service(store):
        await world.drained()

    assert (await store.get_state_machine("o1", "orders")).state == "accepted"
    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok
    assert await world.amazon.responses(world.outcomes) == []


async def test_refusal_is_published(world: World, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    await world.amazon.send(world.events, event_for("o1", "deliver", event_id="e1"))
    await world.amazon.send(world.events, event_for("o2", "accept", event_id="e2"))
    async with world.service(store):
        await world.drained()

    responses = {each.event_id: each.outcome for each in await world.amazon.responses(world.outcomes)}
    assert {id_: outcome.code for id_, outcome in responses.items()} == {
        "e1": EventOutcome.TransitionNotAllowed,
        "e2": EventOutcome.FsmNotFound,
    }
    assert (responses["e2"].id, responses["e2"].config) == ("o2", "orders")


async def test_all_outcomes_are_published_on_demand(world: World) -> None:
    made = DatabaseOptions(notify=True, notify_all=True)
    async with DatabaseStore(f"memory://{world.name}-all", options=made) as store:
        await store.put_config(orders())
        await put_orders(store, "o1")
        for number, event in enumerate(["accept", "accept"]):
            await world.amazon.send(world.events, event_for("o1", event, event_id=f"e{number}"))
        async with world.service(store):
            await world.drained()

    codes = {each.event_id: each.outcome.code for each in await world.amazon.responses(world.outcomes)}
    assert sorted(codes.values()) == [EventOutcome.Ok, EventOutcome.TransitionNotAllowed]


def encoded(request: EventRequest) -> str:
    return base64.b64encode(request.SerializeToString()).decode()


@pytest.mark.parametrize(
    ("body", "reason", "code"),
    [
        ("this is no Base64!", "no Base64", None),
        (base64.b64encode(b"\xff\xff\xff").decode(), "no EventRequest", None),
        ("config: 'orders' id: 'o1'", "no Base64", None),
        (encoded(EventRequest(config="orders", id="o1")), "no event", None),
        (encoded(EventRequest(config="orders", id="o1", event=Event(event_id="e"))), "no event", None),
        (encoded(event_for("o1", "", event_id="e")), "no name", None),
        (
            encoded(event_for("", "accept", event_id="e")),
            "no statemachine ID specified",
            EventOutcome.MissingDestination,
        ),
        (
            encoded(event_for("o1", "accept", config="", event_id="e")),
            "no Configuration name specified",
            EventOutcome.MissingDestination,
        ),
        (
            encoded(event_for("o1", "accept", config="no-such", event_id="e")),
            "there is no configuration 'no-such'",
            EventOutcome.ConfigurationNotFound,
        ),
        (encoded(event_for("o1", "accept", event_id="e", namespace="other")), "namespace", None),
        (encoded(event_for("o\n1", "accept", event_id="e")), "control character", None),
    ],
)
async def test_poison_goes_to_the_dead_letters_with_the_reason(
    world: World, store: DatabaseStore, body: str, reason: str, code: int | None
) -> None:
    await put_orders(store, "o1")
    message_id = await world.amazon.send(world.events, body)
    await world.amazon.send(world.events, event_for("o1", "accept", event_id="good"))
    async with world.service(store):
        await world.drained()

    (letter,) = await world.amazon.take(world.dead)
    said = {name: value["StringValue"] for name, value in letter["MessageAttributes"].items()}
    assert letter["Body"] == body
    assert reason in said["reason"]
    assert (said["queue"], said["message_id"]) == (world.events, message_id)
    published = [each.outcome.code for each in await world.amazon.responses(world.outcomes)]
    assert published == ([] if code is None else [code])
    assert (await store.get_state_machine("o1", "orders")).state == "accepted"


async def test_outcome_of_a_request_without_a_machine_can_be_asked_for(
    world: World, store: DatabaseStore
) -> None:
    await world.amazon.send(world.events, event_for("", "accept", event_id="e"))
    async with world.service(store):
        await world.drained()

    outcome = await store.get_outcome_for_event("e", "orders")
    assert (outcome.code, outcome.details) == (
        EventOutcome.MissingDestination,
        "no statemachine ID specified",
    )
    assert (await store.get_event("e", "orders")).transition.event == "accept"


async def test_without_dead_letters_poison_stays_in_the_queue(world: World, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    await world.amazon.send(world.events, "poison")
    await world.amazon.send(world.events, event_for("o1", "accept", event_id="e1"))

    async def only_poison_is_left() -> bool:
        return sum(await world.amazon.count(world.events)) == 1

    async with world.service(store, dead=False):
        await until(only_poison_is_left)

    assert (await store.get_state_machine("o1", "orders")).state == "accepted"


async def test_message_that_comes_again_changes_nothing(world: World, store: DatabaseStore) -> None:
    await store.put_state_machine("c", FiniteStateMachine(config_id="counters:v1", state="s0"))
    request = event_for("c", "stay", config="counters", event_id="e1")
    for _ in range(5):
        await world.amazon.send(world.events, request)
    async with world.service(store):
        await world.drained()

    machine = await store.get_state_machine("c", "counters")
    assert (machine.revision, len(machine.history)) == (2, 1)
    assert (await store.get_outcome_for_event("e1", "counters")).code == EventOutcome.Ok


async def test_redelivered_event_without_an_id_is_the_same_event(world: World, store: DatabaseStore) -> None:
    """Whose acknowledgement failed, as the queue was away: the event's id has to come from the message."""
    await store.put_state_machine("c", FiniteStateMachine(config_id="counters:v1", state="s0"))
    message_id = await world.amazon.send(world.events, event_for("c", "stay", config="counters"))
    async with sqs_queue(world.events, world.where(visibility=1), session=world.session) as queue:
        from hsm.fsm.processor import EventProcessor
        from hsm.fsm.service.intake import Intake
        from hsm.fsm.service.reception import Reception

        real, acknowledged = queue.acknowledge, 0

        async def acknowledge(delivery: Any) -> None:
            nonlocal acknowledged
            acknowledged += 1
            if acknowledged == 1:
                return  # as if it had been lost on its way
            await real(delivery)

        cast("Any", queue).acknowledge = acknowledge
        async with EventProcessor(store) as processor:
            intake = Intake(queue, Reception(store, processor, None, "default"))
            running = asyncio.create_task(intake.run())
            await world.drained()
            intake.stop()
            await running

    machine = await store.get_state_machine("c", "counters")
    assert acknowledged == 2
    assert [event.event_id for event in machine.history] == [message_id]


async def test_message_is_held_as_long_as_its_event_waits(world: World, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    faulty = Faulty(store)
    faulty.break_down("process_events")
    await world.amazon.send(world.events, event_for("o1", "accept", event_id="e1"))
    async with (
        world.service(faulty, visibility=1),
        sqs_queue(world.events, world.where(), session=world.session) as other,
    ):

        async def is_accepted() -> bool:
            return "process_events" in faulty.calls

        await until(is_accepted)
        # Longer than the visibility, which two polls of a second are.
        received = [await other.receive(10) for _ in range(3)]
        faulty.recover()
        await world.drained()

    assert received == [[], [], []]
    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok


async def test_messages_wait_while_the_database_is_away(world: World, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    faulty = Faulty(store)
    async with world.service(faulty):
        faulty.break_down("accept_event")
        for number, event in enumerate(["accept", "ship", "deliver"]):
            await world.amazon.send(world.events, event_for("o1", event, event_id=f"e{number}"))

        async def tried() -> bool:
            return faulty.calls.count("accept_event") >= 3

        await until(tried)
        assert sum(await world.amazon.count(world.events)) == 3
        faulty.recover()
        await world.drained()

    assert await world.amazon.take(world.dead) == []
    outcomes = [(await store.get_outcome_for_event(f"e{number}", "orders")).code for number in range(3)]
    assert EventOutcome.Ok in outcomes


async def test_fifo_queue_keeps_the_order_of_a_machine(
    amazon: Queues, endpoint: str, store: DatabaseStore, world: World
) -> None:
    fifo = await World(amazon, endpoint, world.name, world.session).open(".fifo")
    machines = [f"o{number}" for number in range(5)]
    await put_orders(store, *machines)
    for event in ("accept", "ship", "deliver", "return"):
        for machine in machines:
            await amazon.send(
                fifo.events,
                event_for(machine, event, event_id=f"{machine}-{event}"),
                MessageGroupId=machine,
                MessageDeduplicationId=f"{machine}-{event}",
            )
    async with fifo.service(store):
        await fifo.drained()

    for machine in machines:
        found = await store.get_state_machine(machine, "orders")
        assert [event.transition.event for event in found.history] == ["accept", "ship", "deliver"]
    refused = await amazon.responses(fifo.outcomes)
    assert {each.event_id for each in refused} == {f"{machine}-return" for machine in machines}


async def test_stopping_gives_back_what_is_not_accepted(world: World, store: DatabaseStore) -> None:
    await put_orders(store, "o1")
    faulty = Faulty(store)
    faulty.break_down("accept_event")
    await world.amazon.send(world.events, event_for("o1", "accept", event_id="e1"))
    async with world.service(faulty, visibility=3600):

        async def tried() -> bool:
            return "accept_event" in faulty.calls

        await until(tried)
    assert await world.amazon.count(world.events) == (1, 0)
    async with world.service(store):
        await world.drained()
    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok


async def test_outcome_is_published_after_the_publisher_was_away(
    world: World, store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hsm.fsm.service.sqs import SQSPublisher

    await put_orders(store, "o1")

    async def fail(*_: object) -> None:
        raise QueueError("the queue is away")

    with monkeypatch.context() as patch:
        patch.setattr(SQSPublisher, "publish", fail)
        await world.amazon.send(world.events, event_for("o1", "ship", event_id="e1"))
        async with world.service(store):
            await world.drained()
        assert await world.amazon.responses(world.outcomes) == []
    async with world.service(store):

        async def published() -> bool:
            return (await world.amazon.count(world.outcomes))[0] == 1

        await until(published)
    (response,) = await world.amazon.responses(world.outcomes)
    assert (response.event_id, response.outcome.code) == ("e1", EventOutcome.TransitionNotAllowed)


async def test_slow_publisher_holds_up_nothing(
    world: World, store: DatabaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hsm.fsm.service.sqs import SQSPublisher

    released, real = asyncio.Event(), SQSPublisher.publish

    async def wait(publisher: SQSPublisher, response: Any) -> None:
        await released.wait()
        await real(publisher, response)

    monkeypatch.setattr(SQSPublisher, "publish", wait)
    await put_orders(store, "o1", "o2")
    async with world.service(store):
        await world.amazon.send(world.events, event_for("o1", "ship", event_id="refused"))
        await world.amazon.send(world.events, event_for("o2", "accept", event_id="good"))
        await world.drained()
        assert (await store.get_outcome_for_event("good", "orders")).code == EventOutcome.Ok
        released.set()

    assert [each.event_id for each in await world.amazon.responses(world.outcomes)] == ["refused"]


async def test_many_messages_and_two_services(world: World, store: DatabaseStore) -> None:
    for number in range(5):
        await store.put_state_machine(f"c{number}", FiniteStateMachine(config_id="counters:v1", state="s0"))
    requests = [
        event_for(f"c{number % 5}", "next", config="counters", event_id=f"e{number}") for number in range(100)
    ]
    await asyncio.gather(*(world.amazon.send(world.events, each) for each in requests))
    async with world.service(store), world.service(store):
        await world.drained()

    machines = [await store.get_state_machine(f"c{number}", "counters") for number in range(5)]
    assert [len(machine.history) for machine in machines] == [20] * 5


@pytest.mark.parametrize("queue", ["no-such-queue", "http://127.0.0.1:1/123/none"])
async def test_missing_queue_is_told(endpoint: str, queue: str) -> None:
    with pytest.raises(QueueError, match=queue):
        async with sqs_queue(queue, SQSOptions(endpoint_url=endpoint, region=REGION)):
            pass


async def test_missing_region_is_told(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    with pytest.raises(QueueError, match="region"):
        async with sqs_queue("events", SQSOptions(endpoint_url=endpoint)):
            pass
