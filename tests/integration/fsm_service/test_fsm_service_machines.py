"""Machines by the service: put, found, listed by pages, streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from google.protobuf.empty_pb2 import Empty
from grpc import StatusCode

from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import (
    FiniteStateMachine,
    GetFsmRequest,
    HealthResponse,
    PutFsmRequest,
)
from tests.support.fsm.configurations import orders
from tests.support.fsm.service import (
    Faulty,
    all_of,
    new_machine,
    refusal,
    serving,
)

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

    Client = StatemachineServiceAsyncStub


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
