"""The service as a whole: its health, on several databases, at its start and at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc import StatusCode

from hsm.fsm.database import DatabaseOptions, DatabaseStore
from hsm.fsm.service import FSMServer
from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import (
    EventOutcome,
    FiniteStateMachine,
    GetFsmRequest,
    HealthResponse,
)
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.service import (
    Faulty,
    all_of,
    client_of,
    event_for,
    named,
    new_machine,
    options,
    outcome_of,
    refusal,
    serving,
)

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

    Client = StatemachineServiceAsyncStub


class TestHealth:
    async def test_ready(self, client: Client) -> None:
        health = await client.Health(Empty())

        assert health.state == HealthResponse.READY
        assert (health.release, health.tlsEnabled) == ("0.1.0", False)

    async def test_not_ready_while_the_store_does_not_answer(self, store: StoreManager) -> None:
        faulty = Faulty(store)
        async with serving(cast("StoreManager", faulty)) as client:
            faulty.break_down("health")
            assert (await client.Health(Empty())).state == HealthResponse.NOT_READY
            faulty.recover()
            assert (await client.Health(Empty())).state == HealthResponse.READY

    async def test_not_ready_if_the_store_hangs(self, store: StoreManager) -> None:
        faulty = Faulty(store)
        async with serving(cast("StoreManager", faulty), timeout=timedelta(milliseconds=50)) as client:
            faulty.hang = True
            assert (await client.Health(Empty())).state == HealthResponse.NOT_READY
            faulty.recover()


class TestOnDatabases:
    @asynccontextmanager
    async def service(self, url: str) -> AsyncIterator[tuple[Client, StoreManager]]:
        async with (
            DatabaseStore(url, options=DatabaseOptions(timeout=timedelta(seconds=30))) as store,
            serving(store) as client,
        ):
            yield client, store

    async def test_machines_live_through_a_restart(self, url: str) -> None:
        async with DatabaseStore(url):  # keeps what is in memory
            async with self.service(url) as (client, _):
                await client.PutConfiguration(orders())
                await client.PutFiniteStateMachine(new_machine("o1"))
                await client.SendEvent(event_for("o1", "accept", event_id="e1"))
                assert (await outcome_of(client, "e1")).outcome.code == EventOutcome.Ok
            async with self.service(url) as (client, _):
                await client.SendEvent(event_for("o1", "ship", event_id="e2"))
                await client.SendEvent(event_for("o1", "accept", event_id="e3"))
                outcomes = [(await outcome_of(client, id_)).outcome.code for id_ in ("e1", "e2", "e3")]
                machine = await client.GetFiniteStateMachine(GetFsmRequest(config="orders", id="o1"))
                in_state = {
                    state: list((await client.GetAllInState(GetFsmRequest(config="orders", state=state))).ids)
                    for state in orders().states
                }

        assert outcomes == [EventOutcome.Ok, EventOutcome.Ok, EventOutcome.TransitionNotAllowed]
        assert (machine.state, [event.event_id for event in machine.history]) == ("shipped", ["e1", "e2"])
        assert [state for state, ids in in_state.items() if ids] == ["shipped"]

    async def test_pending_events_are_taken_up_in_the_order_of_their_acceptance(self, url: str) -> None:
        events = ["accept", "ship", "deliver", "return"]
        async with DatabaseStore(url) as store:
            await store.put_config(orders())
            for number in range(5):
                await store.put_state_machine(
                    f"o{number}", FiniteStateMachine(config_id="orders:v1", state="start")
                )
            # What a process leaves behind that ended after it had accepted, and before it processed.
            for event in events:
                for number in range(5):
                    await store.accept_event(event_for(f"o{number}", event, event_id=f"{event}-{number}"))
            async with self.service(url) as (client, _):
                outcomes = [
                    [(await outcome_of(client, f"{event}-{number}")).outcome.code for event in events]
                    for number in range(5)
                ]
                machines = [
                    await client.GetFiniteStateMachine(GetFsmRequest(config="orders", id=f"o{number}"))
                    for number in range(5)
                ]

        assert outcomes == [[EventOutcome.Ok] * 3 + [EventOutcome.TransitionNotAllowed]] * 5
        assert [machine.state for machine in machines] == ["delivered"] * 5

    async def test_many_events_at_once(self, url: str) -> None:
        async with self.service(url) as (client, _):
            await client.PutConfiguration(counter())
            for number in range(10):
                await client.PutFiniteStateMachine(new_machine(f"c{number}", config_id="counters:v1"))
            sent = await asyncio.gather(
                *(
                    client.SendEvent(event_for(f"c{number % 10}", "next", config="counters"))
                    for number in range(300)
                )
            )
            outcomes = [(await outcome_of(client, each.event_id, "counters")).outcome.code for each in sent]
            machines = [
                await client.GetFiniteStateMachine(GetFsmRequest(config="counters", id=f"c{number}"))
                for number in range(10)
            ]

        assert outcomes == [EventOutcome.Ok] * 300
        for machine in machines:
            assert (len(machine.history), machine.revision, machine.state) == (30, 31, "s0")
            path = [(getattr(each.transition, "from"), each.transition.to) for each in machine.history]
            assert all(one[1] == other[0] for one, other in pairwise(path))

    async def test_two_services_on_one_database_keep_machine_and_index_together(self, url: str) -> None:
        async with self.service(url) as (one, _), self.service(url) as (other, _):
            await one.PutConfiguration(counter())
            await one.PutFiniteStateMachine(new_machine("c", config_id="counters:v1"))
            sent = await asyncio.gather(
                *(client.SendEvent(event_for("c", "next", config="counters")) for client in [one, other] * 50)
            )
            outcomes = [(await outcome_of(one, each.event_id, "counters")).outcome.code for each in sent]
            machine = await one.GetFiniteStateMachine(GetFsmRequest(config="counters", id="c"))
            holders = [
                state
                for state in counter().states
                if (await other.GetAllInState(GetFsmRequest(config="counters", state=state))).ids
            ]

        assert outcomes == [EventOutcome.Ok] * 100
        assert (len(machine.history), holders) == (100, [machine.state])


async def test_port_in_use_is_told(store: StoreManager) -> None:
    async with FSMServer(store, options()) as first:
        taken = FSMServer(store, options(address=f"127.0.0.1:{first.port}"))
        with pytest.raises(Exception, match=str(first.port)) as caught:
            await taken.__aenter__()
        assert type(caught.value).__name__ == "ServiceAddressError"


async def test_call_that_is_served_is_answered_before_the_end(store: StoreManager) -> None:
    await store.put_config(orders())
    faulty = Faulty(store)
    server = FSMServer(cast("StoreManager", faulty), options())
    await server.__aenter__()
    async with client_of(server.port) as client:
        await client.Health(Empty())
        begun, release = asyncio.Event(), asyncio.Event()

        async def wait(*_: Any) -> Any:
            begun.set()
            await release.wait()
            return await store.get_config("orders:v1")

        vars(faulty)["get_config"] = wait
        call = asyncio.ensure_future(client.GetConfiguration(named("orders:v1")))
        await begun.wait()
        closing = asyncio.create_task(server.aclose())
        code, _ = await refusal(_once_refused(client))
        release.set()
        answer = await call
        await closing

    assert code == StatusCode.UNAVAILABLE
    assert answer == orders()


async def _once_refused(client: Client) -> object:
    """Calls until one is not served any more."""
    while True:
        await client.GetAllConfigurations(named(""), timeout=5)
        await asyncio.sleep(0.005)


async def test_accepted_events_are_processed_before_the_end(store: StoreManager) -> None:
    faulty = Faulty(store)
    server = FSMServer(cast("StoreManager", faulty), options())
    async with server, client_of(server.port) as client:
        await client.PutConfiguration(counter())
        for number in range(20):
            await client.PutFiniteStateMachine(new_machine(f"c{number}", config_id="counters:v1"))
        faulty.break_down("process_events")
        for number in range(200):
            request = event_for(f"c{number % 20}", "next", config="counters", event_id=f"e{number}")
            await client.SendEvent(request)
        closing = asyncio.create_task(server.aclose())
        assert (await refusal(_once_refused(client)))[0] == StatusCode.UNAVAILABLE
        assert not closing.done()
        faulty.recover()
        await closing

    outcomes = [(await store.get_outcome_for_event(f"e{number}", "counters")).code for number in range(200)]
    assert outcomes == [EventOutcome.Ok] * 200
    assert [each async for each in store.pending_machines()] == []


async def test_watcher_of_health_does_not_hold_up_the_end(store: StoreManager) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with (
        FSMServer(store, options(grace=timedelta(hours=1))) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        states = aiter(watch)
        first = await anext(states)
        closing = asyncio.create_task(server.aclose())
        second = await anext(states)
        await asyncio.wait_for(closing, 60)

    assert first.status == health_pb2.HealthCheckResponse.SERVING
    assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_service_follows_the_store(store: StoreManager) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    faulty = Faulty(store)
    async with (
        FSMServer(
            cast("StoreManager", faulty), options(health_interval=timedelta(milliseconds=20))
        ) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        request = health_pb2.HealthCheckRequest(service="statemachine.v1beta.StatemachineService")
        states = aiter(health_pb2_grpc.HealthStub(channel).Watch(request))
        seen = [(await anext(states)).status]
        faulty.break_down("health")
        seen.append((await anext(states)).status)
        faulty.recover()
        seen.append((await anext(states)).status)

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert seen == [serving, not_serving, serving]


async def test_schema_can_be_asked_for(store: StoreManager) -> None:
    from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
    from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

    async with (
        FSMServer(store, options()) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        asked = iter(
            [
                ServerReflectionRequest(list_services=""),
                ServerReflectionRequest(file_containing_symbol="statemachine.v1beta.StatemachineService"),
            ]
        )
        answers = await all_of(ServerReflectionStub(channel).ServerReflectionInfo(asked))

    names = {service.name for service in answers[0].list_services_response.service}
    assert {"statemachine.v1beta.StatemachineService", "grpc.health.v1.Health"} <= names
    assert b"SendEvent" in answers[1].file_descriptor_response.file_descriptor_proto[0]
