"""Events by the service: accepted durably, their outcomes asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from grpc import StatusCode

from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import (
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
    GetFsmRequest,
)
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.service import (
    Faulty,
    event_for,
    new_machine,
    outcome_of,
    refusal,
    serving,
)

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

    Client = StatemachineServiceAsyncStub


class TestEvents:
    async def test_event_moves_the_machine(self, orders_client: Client) -> None:
        await orders_client.PutFiniteStateMachine(new_machine("o1"))
        request = event_for("o1", "accept", event_id="e1")
        request.event.details = "payload"

        sent = await orders_client.SendEvent(request)
        response = await outcome_of(orders_client, "e1")

        assert (sent.event_id, sent.HasField("outcome")) == ("e1", False)
        assert response.outcome == EventOutcome(id="o1", config="orders", revision=2)
        machine = await orders_client.GetFiniteStateMachine(GetFsmRequest(config="orders", id="o1"))
        assert (machine.state, machine.revision) == ("accepted", 2)
        (made,) = machine.history
        assert (made.event_id, made.details, made.transition.to) == ("e1", "payload", "accepted")
        assert made.HasField("timestamp")

    async def test_without_an_id_it_gets_one(self, orders_client: Client) -> None:
        await orders_client.PutFiniteStateMachine(new_machine("o1"))

        sent = await orders_client.SendEvent(event_for("o1", "accept"))

        assert sent.event_id
        assert (await outcome_of(orders_client, sent.event_id)).outcome.code == EventOutcome.Ok

    @pytest.mark.parametrize(
        ("request_", "text"),
        [
            (event_for("", "accept"), "no statemachine ID specified"),
            (event_for("o1", "accept", config=""), "no Configuration name specified"),
            (event_for("o1", ""), "no event name specified"),
            (EventRequest(config="orders", id="o1"), "no event name specified"),
            (EventRequest(config="orders", id="o1", event=Event(event_id="e")), "no event name specified"),
        ],
    )
    async def test_event_that_says_too_little_is_not_accepted(
        self, orders_client: Client, store: StoreManager, request_: EventRequest, text: str
    ) -> None:
        assert await refusal(orders_client.SendEvent(request_)) == (StatusCode.FAILED_PRECONDITION, text)
        assert [each async for each in store.pending_machines()] == []

    @pytest.mark.parametrize(
        "request_",
        [
            event_for("o\0", "accept"),
            event_for("o1", "accept", event_id="e" * 600),
            event_for("o1", "a\x07"),
            event_for("o1", "accept", namespace="other"),
        ],
    )
    async def test_event_with_names_that_are_none(
        self, orders_client: Client, request_: EventRequest
    ) -> None:
        assert (await refusal(orders_client.SendEvent(request_)))[0] == StatusCode.INVALID_ARGUMENT

    @pytest.mark.parametrize(
        ("request_", "code"),
        [
            (event_for("o1", "ship", event_id="e"), EventOutcome.TransitionNotAllowed),
            (event_for("o1", "fly", event_id="e"), EventOutcome.EventNotAllowed),
            (event_for("o2", "accept", event_id="e"), EventOutcome.FsmNotFound),
            (event_for("with blanks", "accept", event_id="e"), EventOutcome.FsmNotFound),
            (event_for("o1", "accept", event_id="e", expected_revision=7), EventOutcome.RevisionMismatch),
        ],
    )
    async def test_refused_event_has_an_outcome_and_is_kept(
        self, orders_client: Client, request_: EventRequest, code: EventOutcome.StatusCode.ValueType
    ) -> None:
        await orders_client.PutFiniteStateMachine(new_machine("o1"))
        await orders_client.SendEvent(request_)

        outcome = (await outcome_of(orders_client, "e")).outcome

        assert outcome.code == code
        assert outcome.details
        assert "fsm:" not in outcome.details
        machine = await orders_client.GetFiniteStateMachine(GetFsmRequest(config="orders", id="o1"))
        assert (machine.state, machine.revision, list(machine.history)) == ("start", 1, [])
        kept = await orders_client.GetEvent(EventRequest(config="orders", id="e"))
        assert kept.transition.event == request_.event.transition.event

    async def test_missing_version_of_a_configuration_is_told_apart(
        self, orders_client: Client, store: StoreManager
    ) -> None:
        await store.put_state_machine("o1", FiniteStateMachine(config_id="orders:v9", state="start"))
        await orders_client.SendEvent(event_for("o1", "accept", event_id="e"))

        assert (await outcome_of(orders_client, "e")).outcome.code == EventOutcome.ConfigurationNotFound

    async def test_event_for_an_unknown_configuration_is_not_accepted(self, client: Client) -> None:
        assert await refusal(client.SendEvent(event_for("o1", "accept"))) == (
            StatusCode.FAILED_PRECONDITION,
            "there is no configuration 'orders'",
        )

    async def test_expected_revision_that_holds(self, orders_client: Client) -> None:
        await orders_client.PutFiniteStateMachine(new_machine("o1"))
        await orders_client.SendEvent(event_for("o1", "accept", event_id="e", expected_revision=1))

        assert (await outcome_of(orders_client, "e")).outcome.code == EventOutcome.Ok

    async def test_event_that_comes_again_changes_nothing(self, client: Client) -> None:
        await client.PutConfiguration(counter())
        await client.PutFiniteStateMachine(new_machine("c1", config_id="counters:v1"))
        request = event_for("c1", "stay", config="counters", event_id="e1")
        await client.SendEvent(request)
        first = await outcome_of(client, "e1", "counters")

        again = await client.SendEvent(request)

        assert again == first
        machine = await client.GetFiniteStateMachine(GetFsmRequest(config="counters", id="c1"))
        assert (machine.revision, len(machine.history)) == (2, 1)

    async def test_pending_is_told_apart_from_unknown(self, store: StoreManager) -> None:
        faulty = Faulty(store)
        async with serving(cast("StoreManager", faulty)) as client:
            await client.PutConfiguration(orders())
            await client.PutFiniteStateMachine(new_machine("o1"))
            faulty.break_down("process_events")
            await client.SendEvent(event_for("o1", "accept", event_id="e1"))

            pending = await client.GetEventOutcome(EventRequest(config="orders", id="e1"))
            unknown = await refusal(client.GetEventOutcome(EventRequest(config="orders", id="e2")))
            faulty.recover()
            settled = await outcome_of(client, "e1")

        assert (pending.event_id, pending.HasField("outcome")) == ("e1", False)
        assert unknown == (StatusCode.NOT_FOUND, "there is no event 'e2' of 'orders'")
        assert settled.outcome.code == EventOutcome.Ok

    @pytest.mark.parametrize("query", [{"id": "e1"}, {"config": "orders"}])
    async def test_question_that_says_too_little(self, client: Client, query: dict[str, str]) -> None:
        request = EventRequest(**cast("Any", query))

        assert (await refusal(client.GetEventOutcome(request)))[0] == StatusCode.INVALID_ARGUMENT
        assert (await refusal(client.GetEvent(request)))[0] == StatusCode.INVALID_ARGUMENT

    async def test_unknown_event(self, client: Client) -> None:
        request = EventRequest(config="orders", id="e1")

        assert (await refusal(client.GetEvent(request)))[0] == StatusCode.NOT_FOUND

    async def test_one_machine_in_trouble_holds_up_no_other(self, store: StoreManager) -> None:
        stuck = asyncio.Event()

        class Stuck(Faulty):
            def __getattr__(self, name: str) -> Any:
                call = super().__getattr__(name)
                if name != "process_events":
                    return call

                async def process(events: Any) -> Any:
                    if events[0].request.id == "slow":
                        await stuck.wait()
                    return await call(events)

                return process

        async with serving(cast("StoreManager", Stuck(store))) as client:
            await client.PutConfiguration(orders())
            for machine in ("slow", "fast"):
                await client.PutFiniteStateMachine(new_machine(machine))
                await client.SendEvent(event_for(machine, "accept", event_id=f"to-{machine}"))
            fast = await outcome_of(client, "to-fast")
            slow = await client.GetEventOutcome(EventRequest(config="orders", id="to-slow"))
            stuck.set()
            assert (await outcome_of(client, "to-slow")).outcome.code == EventOutcome.Ok

        assert (fast.outcome.code, slow.HasField("outcome")) == (EventOutcome.Ok, False)
