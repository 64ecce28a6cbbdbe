"""The service for tests: in this process, called over loopback as any client calls it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode
from grpc.aio import AioRpcError

from hsm.fsm.errors import GenericStoreError
from hsm.fsm.service import FSMServer, ServerOptions
from hsm.fsm.store import StoreManager
from persistence.errors import StoreUnavailableError
from persistence.proto.statemachine_pb2 import (
    EventRequest,
    EventResponse,
    FiniteStateMachine,
    PutFsmRequest,
)
from persistence.proto.statemachine_pb2_grpc import StatemachineServiceStub

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

T = TypeVar("T")

TIME_LIMIT_SECONDS = 60


def options(**changes: Any) -> ServerOptions:
    """A service on a free port, in plain text."""
    return ServerOptions(**({"address": "127.0.0.1:0", "tls": None} | changes))


@asynccontextmanager
async def serving(store: StoreManager, **changes: Any) -> AsyncIterator[StatemachineServiceAsyncStub]:
    """A client of a service on a store."""
    arguments = {name: changes.pop(name) for name in ("queues", "publisher", "telemetry") if name in changes}
    async with FSMServer(store, options(**changes), **arguments) as server, client_of(server.port) as client:
        yield client


def named(value: str) -> StringValue:
    return StringValue(value=value)


@asynccontextmanager
async def client_of(
    port: int, credentials: grpc.ChannelCredentials | None = None, *, host: str = "127.0.0.1"
) -> AsyncIterator[StatemachineServiceAsyncStub]:
    """A client of a service on a port."""
    address = f"{host}:{port}"
    if credentials is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        channel = grpc.aio.secure_channel(address, credentials)
    async with channel:
        yield cast("StatemachineServiceAsyncStub", StatemachineServiceStub(channel))


async def refusal(call: Awaitable[object]) -> tuple[StatusCode, str]:
    """The code and the text with which a call fails."""
    try:
        answer = await call
    except AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"the call succeeds: {answer}")


async def all_of(stream: AsyncIterable[T]) -> list[T]:
    """All answers of a stream."""
    return [answer async for answer in stream]


def event_for(
    machine: str, event: str, *, config: str = "orders", event_id: str = "", **others: Any
) -> EventRequest:
    """An event for a machine."""
    request = EventRequest(config=config, id=machine, **others)
    request.event.transition.event = event
    request.event.event_id = event_id
    return request


def new_machine(
    machine: str = "", *, config_id: str = "orders:v1", state: str = "", **others: Any
) -> PutFsmRequest:
    """A machine to put."""
    return PutFsmRequest(id=machine, fsm=FiniteStateMachine(config_id=config_id, state=state), **others)


async def outcome_of(
    client: StatemachineServiceAsyncStub, event_id: str, config: str = "orders"
) -> EventResponse:
    """What became of an event, once that is known."""
    async with asyncio.timeout(TIME_LIMIT_SECONDS):
        while True:
            response = await client.GetEventOutcome(EventRequest(config=config, id=event_id))
            if response.HasField("outcome"):
                return response
            await asyncio.sleep(0.005)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(TIME_LIMIT_SECONDS):
        while not await condition():  # noqa: ASYNC110 - it is somebody else's
            await asyncio.sleep(0.01)


class Faulty:
    """A store whose methods fail when they are told to."""

    def __init__(self, store: StoreManager) -> None:
        self._store = store
        self.error: Exception | None = None
        self.hang = False
        self.failing: set[str] = set()
        self.calls: list[str] = []

    def break_down(self, *names: str, error: Exception | None = None) -> None:
        """Let these methods fail, or all."""
        self.error = error or _unavailable()
        self.failing = set(names)

    def recover(self) -> None:
        self.error = None
        self.hang = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in {"pending_machines", "notifications", "set_timeout", "get_timeout", "set_log_level"}:
            return method

        async def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            hit = not self.failing or name in self.failing
            if self.hang and hit:
                await asyncio.Event().wait()
            if self.error is not None and hit:
                raise self.error
            return await method(*arguments, **named)

        return call


def _unavailable() -> GenericStoreError:
    error = GenericStoreError("get 'fsm:orders#secret': connection refused by db-17.internal")
    error.__cause__ = StoreUnavailableError("connection refused by db-17.internal")
    return error


SHORT = timedelta(milliseconds=100)
