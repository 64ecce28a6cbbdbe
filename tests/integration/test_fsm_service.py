"""The service of configured machines: what each of its calls answers, over loopback, on several databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode

from hsm.fsm.configuration import with_defaults
from hsm.fsm.database import DatabaseOptions, DatabaseStore
from hsm.fsm.domain import new_state_machine
from hsm.fsm.errors import (
    GenericStoreError,
    InvalidDataError,
    StoreTimeoutError,
    TooManyAttemptsError,
)
from hsm.fsm.processor import ProcessorOptions
from hsm.fsm.service import FSMServer
from hsm.fsm.store import StoreManager
from hsm.testing.faults import Call, FaultyStore
from persistence.errors import TransactionTooLargeError
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
    GetFsmRequest,
    HealthResponse,
    PutFsmRequest,
)
from persistence.stores.memory import MemoryStore
from tests.support.fsm.configurations import configuration, counter, orders
from tests.support.fsm.service import (
    Faulty,
    all_of,
    client_of,
    event_for,
    new_machine,
    options,
    outcome_of,
    refusal,
    serving,
)
from tests.support.servers import Server

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

    Client = StatemachineServiceAsyncStub


def named(value: str) -> StringValue:
    return StringValue(value=value)


def too_large() -> InvalidDataError:
    """What a store raises that is given more than it can carry."""
    error = InvalidDataError("machine 'o1': transaction over the limit")
    error.__cause__ = TransactionTooLargeError("transaction over the limit")
    return error


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreManager]:
    async with DatabaseStore(f"memory://{tmp_path.name}") as opened:
        yield opened


@pytest.fixture
async def client(store: StoreManager) -> AsyncIterator[Client]:
    async with serving(store) as opened:
        yield opened


@pytest.fixture
async def orders_client(client: Client) -> Client:
    await client.PutConfiguration(orders())
    return client


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("valkey", marks=pytest.mark.server),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path, server_of: Callable[[str], Server]) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return (
        f"sqlite:///{tmp_path}/fsm.db" if request.param == "sqlite" else server_of(request.param).fresh_url()
    )


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


class TestMachines:
    async def test_put_defaults_the_state_and_is_found_by_it(self, orders_client: Client) -> None:
        answer = await orders_client.PutFiniteStateMachine(new_machine("o1"))

        assert (answer.id, answer.fsm.state, answer.fsm.revision) == ("o1", "start", 1)
        found = await orders_client.GetFiniteStateMachine(GetFsmRequest(config="orders", id="o1"))
        assert found == FiniteStateMachine(config_id="orders:v1", state="start", revision=1)
        listed = await orders_client.GetAllInState(GetFsmRequest(config="orders", state="start"))
        assert listed.ids == ["o1"]

    async def test_without_an_id_it_gets_one(self, orders_client: Client) -> None:
        first, second = [await orders_client.PutFiniteStateMachine(new_machine()) for _ in range(2)]

        assert len({first.id, second.id, ""}) == 3

    async def test_replacing_moves_the_index(self, orders_client: Client) -> None:
        await orders_client.PutFiniteStateMachine(new_machine("o1"))
        answer = await orders_client.PutFiniteStateMachine(new_machine("o1", state="shipped"))

        assert answer.fsm.revision == 2
        for state, ids in {"start": [], "shipped": ["o1"]}.items():
            listed = await orders_client.GetAllInState(GetFsmRequest(config="orders", state=state))
            assert listed.ids == ids

    async def test_expected_revision(self, orders_client: Client) -> None:
        await orders_client.PutFiniteStateMachine(new_machine("o1", expected_revision=0))
        for expected in (0, 2):
            code, _ = await refusal(
                orders_client.PutFiniteStateMachine(new_machine("o1", expected_revision=expected))
            )
            assert code == StatusCode.ABORTED
        answer = await orders_client.PutFiniteStateMachine(
            new_machine("o1", state="accepted", expected_revision=1)
        )
        assert answer.fsm.revision == 2

    @pytest.mark.parametrize(
        ("request_", "code"),
        [
            (PutFsmRequest(id="o1"), StatusCode.INVALID_ARGUMENT),
            (new_machine("o1", config_id=""), StatusCode.INVALID_ARGUMENT),
            (new_machine("o1", config_id="orders:v9"), StatusCode.FAILED_PRECONDITION),
            (new_machine("o1", state="nowhere"), StatusCode.INVALID_ARGUMENT),
            (new_machine("o\n1"), StatusCode.INVALID_ARGUMENT),
            (new_machine("o" * 1000), StatusCode.INVALID_ARGUMENT),
        ],
    )
    async def test_refused(self, orders_client: Client, request_: PutFsmRequest, code: StatusCode) -> None:
        assert (await refusal(orders_client.PutFiniteStateMachine(request_)))[0] == code
        assert (await orders_client.Health(Empty())).state == HealthResponse.READY

    @pytest.mark.parametrize(
        ("request_", "code", "text"),
        [
            (GetFsmRequest(), StatusCode.INVALID_ARGUMENT, "configuration"),
            (GetFsmRequest(config="orders"), StatusCode.INVALID_ARGUMENT, "id"),
            (
                GetFsmRequest(config="orders", id="o1"),
                StatusCode.NOT_FOUND,
                "there is no machine 'o1' of 'orders'",
            ),
            (GetFsmRequest(config="orders", id="with blanks"), StatusCode.NOT_FOUND, "with blanks"),
            (GetFsmRequest(config="no-such", id="o1"), StatusCode.NOT_FOUND, "o1"),
        ],
    )
    async def test_get_refused(
        self, orders_client: Client, request_: GetFsmRequest, code: StatusCode, text: str
    ) -> None:
        found, details = await refusal(orders_client.GetFiniteStateMachine(request_))

        assert (found, text in details, "fsm:" in details) == (code, True, False)

    async def test_listing_by_state_and_of_all(self, orders_client: Client) -> None:
        for number in range(8):
            state = "start" if number < 5 else "shipped"
            await orders_client.PutFiniteStateMachine(new_machine(f"o{number}", state=state))

        async def ids(**query: Any) -> list[str]:
            return list((await orders_client.GetAllInState(GetFsmRequest(config="orders", **query))).ids)

        assert await ids(state="start") == ["o0", "o1", "o2", "o3", "o4"]
        assert await ids(state="shipped") == ["o5", "o6", "o7"]
        assert await ids(state="returned") == []
        assert len(await ids()) == 8

    async def test_listing_by_pages(self, orders_client: Client) -> None:
        for number in range(5):
            await orders_client.PutFiniteStateMachine(new_machine(f"o{number}"))
        pages: list[list[str]] = []
        after = ""
        while True:
            request = GetFsmRequest(config="orders", state="start", page_size=2, after=after)
            page = await orders_client.GetAllInState(request)
            pages.append(list(page.ids))
            if not page.next:
                break
            after = page.next

        assert pages == [["o0", "o1"], ["o2", "o3"], ["o4"]]

    async def test_stream_of_machines(self, orders_client: Client) -> None:
        for number in range(3):
            await orders_client.PutFiniteStateMachine(new_machine(f"o{number}"))

        streamed = await all_of(orders_client.StreamAllInstate(GetFsmRequest(config="orders", state="start")))

        assert [(each.id, each.fsm.state, each.fsm.config_id) for each in streamed] == [
            (f"o{number}", "start", "orders:v1") for number in range(3)
        ]

    async def test_machine_that_leaves_meanwhile_ends_no_stream(self, store: StoreManager) -> None:
        faulty = Faulty(store)

        async def list_and_change(*arguments: Any, **named: Any) -> Any:
            ids = await store.get_all_in_state(*arguments, **named)
            if "o2" in ids:
                await store.delete_state_machine("o2", "orders")
                shipped = FiniteStateMachine(config_id="orders:v1", state="shipped")
                await store.put_state_machine("o3", shipped)
            return ids

        vars(faulty)["get_all_in_state"] = list_and_change
        async with serving(cast("StoreManager", faulty)) as client:
            await client.PutConfiguration(orders())
            for number in range(5):
                await client.PutFiniteStateMachine(new_machine(f"o{number}"))
            streamed = await all_of(client.StreamAllInstate(GetFsmRequest(config="orders", state="start")))

        assert [each.id for each in streamed] == ["o0", "o1", "o4"]

    async def test_stream_of_many_machines(self, store: StoreManager) -> None:
        async with serving(store) as client:
            await client.PutConfiguration(orders())
            for number in range(1100):
                await store.put_state_machine(
                    f"o{number:04}", FiniteStateMachine(config_id="orders:v1", state="start")
                )
            streamed = await all_of(client.StreamAllInstate(GetFsmRequest(config="orders", state="start")))

        assert [each.id for each in streamed] == [f"o{number:04}" for number in range(1100)]

    @pytest.mark.parametrize("query", [{}, {"config": "orders", "id": "o1"}])
    async def test_listing_refused(self, client: Client, query: dict[str, str]) -> None:
        request = GetFsmRequest(**cast("Any", query))

        assert (await refusal(client.GetAllInState(request)))[0] == StatusCode.INVALID_ARGUMENT
        assert (await refusal(all_of(client.StreamAllInstate(request))))[0] == StatusCode.INVALID_ARGUMENT


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


READS: dict[str, Callable[[Client], Any]] = {
    "GetAllConfigurations": lambda client: client.GetAllConfigurations(named("")),
    "GetAllConfigurations of a name": lambda client: client.GetAllConfigurations(named("orders")),
    "GetConfiguration": lambda client: client.GetConfiguration(named("orders:v1")),
    "StreamAllConfigurations": lambda client: all_of(client.StreamAllConfigurations(named("orders"))),
    "GetFiniteStateMachine": lambda client: client.GetFiniteStateMachine(
        GetFsmRequest(config="orders", id="o")
    ),
    "GetAllInState": lambda client: client.GetAllInState(GetFsmRequest(config="orders", state="start")),
    "StreamAllInstate": lambda client: all_of(
        client.StreamAllInstate(GetFsmRequest(config="orders", state="start"))
    ),
    "GetEventOutcome": lambda client: client.GetEventOutcome(EventRequest(config="orders", id="e")),
    "GetEvent": lambda client: client.GetEvent(EventRequest(config="orders", id="e")),
}
WRITES: dict[str, Callable[[Client], Any]] = {
    "PutConfiguration": lambda client: client.PutConfiguration(orders()),
    "PutFiniteStateMachine": lambda client: client.PutFiniteStateMachine(new_machine("o")),
    "SendEvent": lambda client: client.SendEvent(event_for("o", "accept")),
}
CALLS = READS | WRITES


class TestFailures:
    @pytest.fixture
    async def faulty(self, store: StoreManager) -> Faulty:
        await store.put_config(orders())
        return Faulty(store)

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    async def test_store_that_is_away_is_neither_not_found_nor_empty(
        self, faulty: Faulty, call: Callable[[Client], Any]
    ) -> None:
        async with serving(cast("StoreManager", faulty)) as client:
            faulty.break_down()
            code, details = await refusal(call(client))
            faulty.recover()

        assert code == StatusCode.UNAVAILABLE
        assert "db-17" not in details
        assert "secret" not in details

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (StoreTimeoutError("slow"), StatusCode.UNAVAILABLE),
            (TooManyAttemptsError("others were faster"), StatusCode.ABORTED),
            (GenericStoreError("odd"), StatusCode.INTERNAL),
            (InvalidDataError("garbage"), StatusCode.DATA_LOSS),
            (too_large(), StatusCode.INVALID_ARGUMENT),
            (RuntimeError("a defect"), StatusCode.INTERNAL),
        ],
        ids=lambda each: each.name if isinstance(each, StatusCode) else type(each).__name__,
    )
    async def test_no_failure_is_unknown(
        self, faulty: Faulty, call: Callable[[Client], Any], error: Exception, expected: StatusCode
    ) -> None:
        async with serving(cast("StoreManager", faulty)) as client:
            faulty.break_down(error=error)
            code, _ = await refusal(call(client))
            faulty.recover()

        assert code == expected

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    async def test_deadline_of_the_client(self, faulty: Faulty, call: Callable[[Any], Any]) -> None:
        async with serving(cast("StoreManager", faulty)) as client:
            faulty.hang = True
            code, _ = await refusal(call(_Impatient(client)))
            faulty.recover()

        assert code == StatusCode.DEADLINE_EXCEEDED

    async def test_time_out_of_the_service(self, faulty: Faulty) -> None:
        async with serving(cast("StoreManager", faulty), timeout=timedelta(milliseconds=50)) as client:
            faulty.hang = True
            code, _ = await refusal(client.SendEvent(event_for("o1", "accept")))
            faulty.recover()

        assert code == StatusCode.DEADLINE_EXCEEDED

    async def test_event_that_is_stored_as_its_deadline_passes_is_processed_soon(self) -> None:
        """And not by a sweep at last."""
        late = asyncio.Event()

        async def answer_late(call: Call) -> None:
            if call.method == "multi":
                await late.wait()

        patient = ProcessorOptions(sweep_interval=timedelta(days=1))
        async with MemoryStore() as memory:
            slow = FaultyStore(memory)
            async with DatabaseStore(slow) as store, serving(store, processor=patient) as client:
                await store.put_config(orders())
                await store.put_state_machine("o1", new_state_machine(orders()))
                slow.after = answer_late
                event = event_for("o1", "accept", event_id="e1")
                code, _ = await refusal(client.SendEvent(event, timeout=0.1))
                late.set()

                assert code == StatusCode.DEADLINE_EXCEEDED
                assert (await outcome_of(client, "e1")).outcome.code == EventOutcome.Ok


class _Impatient:
    """A client whose calls have a deadline."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return lambda request: getattr(self._client, name)(request, timeout=0.1)


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
