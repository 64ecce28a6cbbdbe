"""Configurations by the service: put once, checked, listed and streamed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from grpc import StatusCode

from hsm.fsm.configuration import with_defaults
from persistence.proto.statemachine_pb2 import (
    Configuration,
    EventOutcome,
)
from tests.support.fsm.configurations import configuration, counter, orders
from tests.support.fsm.service import (
    all_of,
    event_for,
    named,
    new_machine,
    outcome_of,
    refusal,
)

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

    Client = StatemachineServiceAsyncStub


class TestConfigurations:
    async def test_put_and_get(self, client: Client) -> None:
        answer = await client.PutConfiguration(orders())

        assert (answer.id, answer.config) == ("orders:v1", orders())
        assert await client.GetConfiguration(named("orders:v1")) == orders()

    async def test_without_a_version_it_is_the_first(self, client: Client) -> None:
        sent = orders()
        sent.version = ""

        assert (await client.PutConfiguration(sent)).id == "orders:v1"

    @pytest.mark.parametrize("other", [orders(), configuration([("a", "b", "go")], name="orders")])
    async def test_one_that_exists_is_never_replaced(
        self, orders_client: Client, other: Configuration
    ) -> None:
        code, details = await refusal(orders_client.PutConfiguration(other))

        assert (code, "orders:v1" in details, "configs#" in details) == (
            StatusCode.ALREADY_EXISTS,
            True,
            False,
        )
        assert await orders_client.GetConfiguration(named("orders:v1")) == orders()

    @pytest.mark.parametrize(
        "change",
        [
            {"name": ""},
            {"name": "a:b"},
            {"name": "orders#1"},
            {"version": "v:1"},
            {"starting_state": ""},
            {"starting_state": "nowhere"},
            {"states": []},
            {"states": ["start", "accepted", "shipped", "delivered", "returned", "lonely"]},
            {"states": ["start", "start", "accepted", "shipped", "delivered", "returned"]},
            {"transitions": [*orders().transitions, orders().transitions[0]]},
        ],
    )
    async def test_invalid(self, client: Client, change: dict[str, Any]) -> None:
        sent = orders()
        for field, value in change.items():
            if isinstance(value, list):
                sent.ClearField(cast("Any", field))
                getattr(sent, field).extend(value)
            else:
                setattr(sent, field, value)

        code, details = await refusal(client.PutConfiguration(sent))

        assert code == StatusCode.INVALID_ARGUMENT
        assert details
        assert (await client.GetAllConfigurations(named(""))).ids == []

    @pytest.mark.parametrize(
        "sent",
        [
            Configuration(
                name="large", states=[f"\U0001f6d1{n}" for n in range(20_000)], starting_state="no"
            ),
            configuration([("a", "b", "go"), ("a", "\U0001f6d1" * 50_000, "on")]),
            configuration([("a", "b", "\U0001f6d1" * 50_000)]),
            configuration([("a", "b", "go")], name="\U0001f6d1" * 50_000),
        ],
    )
    async def test_what_is_wrong_with_a_large_one_is_told_in_few_words(
        self, client: Client, sent: Configuration
    ) -> None:
        """Since a client takes no more of them, and would not learn of the code either."""
        if sent.name != "large":
            del sent.states[1:]
        code, details = await refusal(client.PutConfiguration(sent))

        assert code == StatusCode.INVALID_ARGUMENT
        assert len(details) < 600

    async def test_large_one_is_served(self, client: Client) -> None:
        large = counter("large", 20_000)

        await client.PutConfiguration(large)
        await client.PutFiniteStateMachine(new_machine("m1", config_id="large:v1", state="s19999"))
        await client.SendEvent(event_for("m1", "next", config="large", event_id="e1"))

        assert (await outcome_of(client, "e1", "large")).outcome.code == EventOutcome.Ok
        assert await client.GetConfiguration(named("large:v1")) == with_defaults(large)

    async def test_not_everything_that_is_odd_is_said(self, client: Client) -> None:
        lonely = [(f"s{number}", f"s{number}", "stay") for number in range(30_000)]

        answer = await client.PutConfiguration(configuration(lonely, name="lonely"))

        assert len(answer.warnings) == 101
        assert answer.warnings[-1] == "and 29899 more warnings"

    async def test_what_is_odd_is_said(self, client: Client) -> None:
        odd = configuration([("a", "b", "go"), ("c", "a", "back")], start="a")

        answer = await client.PutConfiguration(odd)

        assert any("'c'" in warning for warning in answer.warnings)

    async def test_two_writers_and_one_succeeds(self, client: Client) -> None:
        rivals = [configuration([("a", f"b{number}", "go")], name="orders") for number in range(8)]

        results = await asyncio.gather(
            *(client.PutConfiguration(each) for each in rivals), return_exceptions=True
        )

        won = [result for result in results if not isinstance(result, BaseException)]
        assert len(won) == 1
        assert await client.GetConfiguration(named("orders:v1")) == won[0].config

    async def test_unknown(self, client: Client) -> None:
        for id_ in ("orders:v1", "no-such"):
            code, details = await refusal(client.GetConfiguration(named(id_)))
            assert (code, details) == (StatusCode.NOT_FOUND, f"there is no configuration {id_!r}")
        assert (await refusal(client.GetConfiguration(named(""))))[0] == StatusCode.INVALID_ARGUMENT

    async def test_names_and_versions(self, client: Client) -> None:
        for each in (orders("v2"), orders("v1"), counter()):
            await client.PutConfiguration(each)

        assert (await client.GetAllConfigurations(named(""))).ids == ["counters", "orders"]
        assert (await client.GetAllConfigurations(named("orders"))).ids == ["orders:v1", "orders:v2"]
        assert (await client.GetAllConfigurations(named("no-such"))).ids == []

    async def test_stream(self, client: Client) -> None:
        for version in ("v1", "v3", "v2"):
            await client.PutConfiguration(orders(version))

        streamed = await all_of(client.StreamAllConfigurations(named("orders")))

        assert [each.version for each in streamed] == ["v1", "v2", "v3"]
        assert await all_of(client.StreamAllConfigurations(named("no-such"))) == []
        assert (await refusal(all_of(client.StreamAllConfigurations(named("")))))[0] == (
            StatusCode.INVALID_ARGUMENT
        )
