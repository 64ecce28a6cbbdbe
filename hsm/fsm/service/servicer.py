"""The gRPC servicer: calls come in, answers or codes go out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar, cast

from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode
from grpc.aio import ServicerContext

from hsm.errors import BusyError
from hsm.fsm.service.calls import Calls
from hsm.fsm.service.codes import status_of
from hsm.fsm.service.telemetry import ServiceTelemetry
from persistence.proto.statemachine_pb2 import (
    DESCRIPTOR,
    Configuration,
    Event,
    EventRequest,
    EventResponse,
    FiniteStateMachine,
    GetFsmRequest,
    HealthResponse,
    ListResponse,
    PutFsmRequest,
    PutResponse,
)
from persistence.proto.statemachine_pb2_grpc import StatemachineServiceServicer

__all__ = ["SERVICE_NAME", "FSMServicer"]

SERVICE_NAME: Final = DESCRIPTOR.services_by_name["StatemachineService"].full_name
"""Name of the service, as in `/statemachine.v1beta.StatemachineService/SendEvent`."""

T = TypeVar("T")
Context: TypeAlias = "ServicerContext[Any, Any]"


class FSMServicer(StatemachineServiceServicer):
    """Serves `Calls` by gRPC.

    A call ends at the client's deadline, or after `timeout` if that comes first; what it has begun to write
    may be written all the same. Streams have the client's deadline alone.
    """

    def __init__(
        self,
        calls: Calls,
        telemetry: ServiceTelemetry,
        *,
        timeout: timedelta,
        release: str,
        tls_enabled: bool,
    ) -> None:
        self._calls = calls
        self._telemetry = telemetry
        self._timeout_seconds = timeout.total_seconds()
        self._release = release
        self._tls_enabled = tls_enabled
        self._ending = False
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def end(self) -> None:
        """Refuse calls from now on, and return when those that are being served are answered."""
        self._ending = True
        await self._idle.wait()

    async def Health(self, request: Empty, context: Context) -> HealthResponse:  # noqa: ARG002
        """Whether the store answers; the call itself succeeds in any case."""
        state = HealthResponse.READY
        try:
            async with asyncio.timeout(self._seconds_left(context)):
                await self._calls.check_health()
        except Exception:  # noqa: BLE001 - whatever it is, we are not ready
            state = HealthResponse.NOT_READY
        return HealthResponse(state=state, release=self._release, tlsEnabled=self._tls_enabled)

    async def PutConfiguration(self, request: Configuration, context: Context) -> PutResponse:
        """See `Calls.put_configuration`."""
        return await self._answer("PutConfiguration", context, lambda: self._calls.put_configuration(request))

    async def GetAllConfigurations(self, request: StringValue, context: Context) -> ListResponse:
        """See `Calls.get_all_configurations`."""
        return await self._answer(
            "GetAllConfigurations", context, lambda: self._calls.get_all_configurations(request.value)
        )

    async def GetConfiguration(self, request: StringValue, context: Context) -> Configuration:
        """See `Calls.get_configuration`."""
        return await self._answer(
            "GetConfiguration", context, lambda: self._calls.get_configuration(request.value)
        )

    async def StreamAllConfigurations(
        self, request: StringValue, context: Context
    ) -> AsyncIterator[Configuration]:
        """See `Calls.stream_all_configurations`."""
        items = self._calls.stream_all_configurations(request.value)
        async for item in self._stream("StreamAllConfigurations", context, items):
            yield item

    async def PutFiniteStateMachine(self, request: PutFsmRequest, context: Context) -> PutResponse:
        """See `Calls.put_machine`."""
        return await self._answer("PutFiniteStateMachine", context, lambda: self._calls.put_machine(request))

    async def GetFiniteStateMachine(self, request: GetFsmRequest, context: Context) -> FiniteStateMachine:
        """See `Calls.get_machine`."""
        return await self._answer("GetFiniteStateMachine", context, lambda: self._calls.get_machine(request))

    async def GetAllInState(self, request: GetFsmRequest, context: Context) -> ListResponse:
        """See `Calls.get_all_in_state`."""
        return await self._answer("GetAllInState", context, lambda: self._calls.get_all_in_state(request))

    async def StreamAllInstate(self, request: GetFsmRequest, context: Context) -> AsyncIterator[PutResponse]:
        """See `Calls.stream_all_in_state`."""
        items = self._calls.stream_all_in_state(request)
        async for item in self._stream("StreamAllInstate", context, items):
            yield item

    async def SendEvent(self, request: EventRequest, context: Context) -> EventResponse:
        """See `Calls.send_event`."""
        return await self._answer("SendEvent", context, lambda: self._calls.send_event(request))

    async def GetEventOutcome(self, request: EventRequest, context: Context) -> EventResponse:
        """See `Calls.get_event_outcome`."""
        return await self._answer("GetEventOutcome", context, lambda: self._calls.get_event_outcome(request))

    async def GetEvent(self, request: EventRequest, context: Context) -> Event:
        """See `Calls.get_event`."""
        return await self._answer("GetEvent", context, lambda: self._calls.get_event(request))

    async def _answer(self, method: str, context: Context, call: Callable[[], Awaitable[T]]) -> T:
        """Serve a call with one answer, in time."""
        with self._telemetry.call(method, _headers(context)) as observer:
            timer = asyncio.timeout(self._seconds_left(context))
            try:
                with self._serving():
                    async with timer:
                        answer = await call()
            except asyncio.CancelledError:
                observer.ended(StatusCode.CANCELLED.name)
                raise
            except Exception as error:  # noqa: BLE001 - every error has its code
                code, details = self._status(error, expired=timer.expired())
                observer.ended(code.name)
                return await context.abort(code, details)
            observer.ended(StatusCode.OK.name)
            return answer

    async def _stream(self, method: str, context: Context, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """Serve a call with many answers; those that went out before an error stay."""
        with self._telemetry.call(method, _headers(context)) as observer:
            try:
                with self._serving():
                    async for item in items:
                        yield item
            except (asyncio.CancelledError, GeneratorExit):
                observer.ended(StatusCode.CANCELLED.name)
                raise
            except Exception as error:  # noqa: BLE001 - every error has its code
                code, details = status_of(error)
                observer.ended(code.name)
                await context.abort(code, details)
            observer.ended(StatusCode.OK.name)

    def _status(self, error: Exception, *, expired: bool) -> tuple[StatusCode, str]:
        if expired and type(error) is TimeoutError:
            return StatusCode.DEADLINE_EXCEEDED, "the call took too long"
        return status_of(error)

    def _seconds_left(self, context: Context) -> float:
        # The stubs leave out that it is None without a deadline.
        left = cast("float | None", context.time_remaining())
        return self._timeout_seconds if left is None else min(left, self._timeout_seconds)

    @contextmanager
    def _serving(self) -> Generator[None, None, None]:
        if self._ending:
            raise BusyError("the service is ending")
        self._open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()


def _headers(context: Context) -> Mapping[str, str]:
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}
