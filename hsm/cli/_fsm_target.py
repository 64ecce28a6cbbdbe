"""What the commands of `hsm fsm` talk to: calls that go to a service, or to a database."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import attrs
import grpc
from google.protobuf.wrappers_pb2 import StringValue

from hsm.cli._database import refuse_memory
from hsm.cli._errors import CommandError, needing
from hsm.cli._fsm_options import DatabaseOptions, KeepingOptions, TargetOptions
from hsm.errors import HSMError
from hsm.fsm.database import DatabaseOptions as StoreOptions, DatabaseStore
from hsm.fsm.keys import DEFAULT_MAX_RETRIES
from hsm.fsm.processor import EventProcessor
from hsm.fsm.redis import RedisStore, RedisStoreOptions
from hsm.fsm.service.calls import Calls
from hsm.fsm.service.codes import status_of
from hsm.fsm.service.tls import ClientTLS
from hsm.fsm.store import StoreManager
from persistence.errors import PersistenceError
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventRequest,
    EventResponse,
    FiniteStateMachine,
    GetFsmRequest,
    ListResponse,
    PutFsmRequest,
    PutResponse,
)
from persistence.proto.statemachine_pb2_grpc import StatemachineServiceStub
from persistence.settings import Properties, host_and_port

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

__all__ = ["CallError", "Target", "checked", "open_machines", "open_target"]

T = TypeVar("T")


# The commands can wait longer than a call between programs.
_REDIS_TIMEOUT: Final = timedelta(seconds=2)
# A machine comes with all of its history.
_CHANNEL_OPTIONS: Final = (("grpc.max_receive_message_length", -1),)
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    }
)


class CallError(CommandError):
    """A call failed.

    Attributes:
        code: of gRPC.
        is_refusal: whether nothing is wrong but with what was asked for.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.is_refusal = code in _REFUSALS


class Target(Protocol):
    """The calls that commands make; see `hsm.fsm.service.Calls`. Await them by `checked`."""

    async def put_configuration(self, configuration: Configuration, /) -> PutResponse: ...
    async def get_configuration(self, config_id: str, /) -> Configuration: ...
    async def get_all_configurations(self, name: str, /) -> ListResponse: ...
    async def put_machine(self, request: PutFsmRequest, /) -> PutResponse: ...
    async def get_machine(self, request: GetFsmRequest, /) -> FiniteStateMachine: ...
    async def get_all_in_state(self, request: GetFsmRequest, /) -> ListResponse: ...
    async def send_event(self, request: EventRequest, /) -> EventResponse: ...
    async def get_event(self, request: EventRequest, /) -> Event: ...
    async def get_event_outcome(self, request: EventRequest, /) -> EventResponse: ...


class _Remote:
    """The calls of a service."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        # The generated stubs have a class for asyncio; the generated code has one for both.
        self._stub = cast("StatemachineServiceAsyncStub", StatemachineServiceStub(channel))
        self._seconds = seconds

    async def put_configuration(self, configuration: Configuration, /) -> PutResponse:
        return await self._stub.PutConfiguration(configuration, timeout=self._seconds)

    async def get_configuration(self, config_id: str, /) -> Configuration:
        return await self._stub.GetConfiguration(StringValue(value=config_id), timeout=self._seconds)

    async def get_all_configurations(self, name: str, /) -> ListResponse:
        return await self._stub.GetAllConfigurations(StringValue(value=name), timeout=self._seconds)

    async def put_machine(self, request: PutFsmRequest, /) -> PutResponse:
        return await self._stub.PutFiniteStateMachine(request, timeout=self._seconds)

    async def get_machine(self, request: GetFsmRequest, /) -> FiniteStateMachine:
        return await self._stub.GetFiniteStateMachine(request, timeout=self._seconds)

    async def get_all_in_state(self, request: GetFsmRequest, /) -> ListResponse:
        return await self._stub.GetAllInState(request, timeout=self._seconds)

    async def send_event(self, request: EventRequest, /) -> EventResponse:
        return await self._stub.SendEvent(request, timeout=self._seconds)

    async def get_event(self, request: EventRequest, /) -> Event:
        return await self._stub.GetEvent(request, timeout=self._seconds)

    async def get_event_outcome(self, request: EventRequest, /) -> EventResponse:
        return await self._stub.GetEventOutcome(request, timeout=self._seconds)


async def checked(call: Awaitable[T]) -> T:
    """The answer of a call.

    Raises:
        CallError: it failed.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        code = error.code()
        details = error.details() or "no details"
        if "handshake" in details.lower():
            details += "; a service that was started with --insecure is called with --insecure"
        raise CallError(code, details) from error
    except (HSMError, PersistenceError) as error:
        code, _ = status_of(error)
        raise CallError(code, str(error)) from error


@asynccontextmanager
async def open_target(options: TargetOptions) -> AsyncGenerator[Target, None]:
    """What the options name, until the block ends; events that were sent have their outcomes then.

    Raises:
        CommandError, PersistenceError: it cannot be used.
    """
    if options.database is None:
        async with _channel(options) as channel:
            yield _Remote(channel, options.timeout.total_seconds())
        return
    async with open_machines(options.database) as store, EventProcessor(store) as processor:
        yield Calls(store, processor, namespace=options.database.namespace)


@asynccontextmanager
async def open_machines(
    options: DatabaseOptions, keeping: KeepingOptions | None = None
) -> AsyncGenerator[StoreManager, None]:
    """The store of machines that the options name, until the block ends.

    Raises:
        CommandError, PersistenceError: it cannot be used.
    """
    refuse_memory(options.url)
    kept = attrs.asdict(keeping or KeepingOptions())
    store: StoreManager
    if options.redis_layout:
        store = _redis_layout(options, kept)
    else:
        store = DatabaseStore(options.url, namespace=options.namespace, options=StoreOptions(**kept))
    async with store:
        yield store


def _redis_layout(options: DatabaseOptions, kept: Mapping[str, Any]) -> RedisStore:
    """The store of a URL whose query may hold `timeout` (seconds), `max_retries`, and the files of TLS."""
    with needing("redis", "--redis-layout"):
        from persistence.stores.redis.settings import parse_url  # noqa: PLC0415 - needs an extra

    target, texts = parse_url(options.url)
    with Properties("Redis", texts) as properties:
        return RedisStore(
            host_and_port(target.host, target.port),
            target.cluster,
            target.database,
            properties.seconds("timeout", _REDIS_TIMEOUT),
            properties.whole("max_retries", DEFAULT_MAX_RETRIES, least=1),
            namespace=options.namespace,
            options=RedisStoreOptions(
                **kept,
                username=target.username,
                password=target.password,
                tls=target.tls,
                tls_ca=properties.text("tls_ca", ""),
                tls_cert=properties.text("tls_cert", ""),
                tls_key=properties.text("tls_key", ""),
                tls_check_hostname=properties.flag("tls_check_hostname", True),
            ),
        )


def _channel(options: TargetOptions) -> grpc.aio.Channel:
    if options.insecure:
        return grpc.aio.insecure_channel(options.address, _CHANNEL_OPTIONS)
    tls = ClientTLS(options.authority, options.certificate, options.key)
    return grpc.aio.secure_channel(options.address, tls.credentials(), _CHANNEL_OPTIONS)
