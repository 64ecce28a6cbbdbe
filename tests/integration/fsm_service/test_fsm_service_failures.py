"""Failures: what a client is told of a store that fails, hangs or is slow, and of its own deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from grpc import StatusCode

from hsm.fsm.database import DatabaseStore
from hsm.fsm.domain import new_state_machine
from hsm.fsm.errors import (
    GenericStoreError,
    InvalidDataError,
    StoreTimeoutError,
    TooManyAttemptsError,
)
from hsm.fsm.processor import ProcessorOptions
from hsm.fsm.store import StoreManager
from hsm.testing.faults import Call, FaultyStore
from persistence.errors import TransactionTooLargeError
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, GetFsmRequest
from persistence.stores.memory import MemoryStore
from tests.support.fsm.configurations import orders
from tests.support.fsm.service import (
    Faulty,
    all_of,
    event_for,
    named,
    new_machine,
    outcome_of,
    refusal,
    serving,
)

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

    Client = StatemachineServiceAsyncStub


def too_large() -> InvalidDataError:
    """What a store raises that is given more than it can carry."""
    error = InvalidDataError("machine 'o1': transaction over the limit")
    error.__cause__ = TransactionTooLargeError("transaction over the limit")
    return error


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
