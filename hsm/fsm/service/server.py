"""The server: gRPC on a port, events from queues, and an end that loses nothing. Needs the extra `fsm`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import attrs
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hsm.fsm.keys import DEFAULT_NAMESPACE
from hsm.fsm.processor import EventProcessor, ProcessorOptions
from hsm.fsm.service.calls import Calls
from hsm.fsm.service.errors import ServiceAddressError
from hsm.fsm.service.intake import Intake, MessageQueue
from hsm.fsm.service.publishing import OutcomePublisher
from hsm.fsm.service.reception import Reception
from hsm.fsm.service.servicer import SERVICE_NAME, FSMServicer
from hsm.fsm.service.telemetry import NoTelemetry, ServiceTelemetry
from hsm.fsm.service.tls import ServerTLS
from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2_grpc import add_StatemachineServiceServicer_to_server

__all__ = ["DEFAULT_PORT", "FSMServer", "ServerOptions"]

DEFAULT_PORT: Final = 7398
"""Where clients look for the service if nothing says so."""

_LOG: Final = logging.getLogger("hsm.fsm.service")
# Two services on one port would each get some of the calls.
_CHANNEL_OPTIONS: Final = (("grpc.so_reuseport", 0),)
_DISTRIBUTION: Final = "hsm-toolkit"
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_LAST_ANSWERS_SECONDS: Final = 0.5


@attrs.frozen
class ServerOptions:
    """How the service listens and ends.

    Attributes:
        address: where to listen, "host:port"; port 0 takes a free one.
        tls: the certificate; None speaks plain text, which only suits a network that nobody else hears.
        timeout: how long a call with one answer may take, at most.
        grace: how long the end may take, from the moment it is asked for.
        concurrency: messages of a queue at once.
        most_deliveries: a message that was delivered more often goes to the dead letters; 0 leaves that to
            the queue.
        health_interval: how often the store is asked whether it answers, for the health service.
        reflection: whether clients can ask for the schema.
        processor: how events are processed.
    """

    address: str = f"localhost:{DEFAULT_PORT}"
    tls: ServerTLS | None = attrs.field(factory=ServerTLS)
    timeout: timedelta = timedelta(seconds=10)
    grace: timedelta = timedelta(seconds=20)
    concurrency: int = 100
    most_deliveries: int = 0
    health_interval: timedelta = timedelta(seconds=2)
    reflection: bool = True
    processor: ProcessorOptions = attrs.field(factory=ProcessorOptions)


class FSMServer:
    """The service on a store, from `async with` on until its block ends.

    At the start, events that are pending are taken up in the order in which they were accepted. At the end
    the service refuses new calls, answers those it is at, processes what it has accepted, acknowledges the
    messages of that, tells the outcomes, and then stops listening. What is not done in time stays pending in
    the store, or in the queue, for the next start.

    The store, and queues and publisher, are the caller's, and have to stay open until then.
    """

    def __init__(
        self,
        store: StoreManager,
        options: ServerOptions | None = None,
        *,
        queues: Sequence[MessageQueue] = (),
        publisher: OutcomePublisher | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        telemetry: ServiceTelemetry | None = None,
    ) -> None:
        """Make one.

        Args:
            store: what the service serves; with a publisher it has to keep notifications.
            options: how.
            queues: events come from them, too.
            publisher: is told the outcomes.
            namespace: of the store; requests for others are refused.
            telemetry: hears of the work.
        """
        self._store = store
        self._options = options or ServerOptions()
        self._telemetry = telemetry or NoTelemetry()
        self._processor = EventProcessor(
            store, self._options.processor, publish=None if publisher is None else publisher.publish
        )
        self._namespace = namespace
        reception = Reception(store, self._processor, publisher, namespace)
        self._intakes = [
            Intake(
                queue,
                reception,
                telemetry=self._telemetry,
                concurrency=self._options.concurrency,
                most_deliveries=self._options.most_deliveries,
            )
            for queue in queues
        ]
        self._receiving: list[asyncio.Task[None]] = []
        self._health = health.aio.HealthServicer()
        self._watch: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None
        self._servicer: FSMServicer | None = None
        self._port = 0
        self._failed = asyncio.Event()

    @property
    def port(self) -> int:
        """The port on which the service listens."""
        return self._port

    async def __aenter__(self) -> Self:
        """Take up what is pending, listen, and receive.

        Raises:
            TLSFileError, ServiceAddressError: the service cannot listen.
            FSMStoreError: the store cannot be read.
        """
        # What can be wrong with the settings comes before anything is done.
        tls = self._options.tls
        credentials = None if tls is None else tls.credentials()
        await self._processor.__aenter__()
        try:
            await self._listen(credentials)
        except BaseException:
            await self._processor.aclose(timeout=timedelta())
            raise
        self._receiving = [asyncio.create_task(intake.run()) for intake in self._intakes]
        for task in self._receiving:
            task.add_done_callback(self._note_end)
        self._watch = asyncio.create_task(self._watch_store())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set, or the service can go on no longer; `aclose` then raises why."""
        waits = [asyncio.create_task(event.wait()) for event in (stop, self._failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def aclose(self) -> None:
        """Accept nothing more, finish what was accepted, and end, at the latest after the time of grace."""
        server, self._server = self._server, None
        if server is None or self._servicer is None:
            return
        end = asyncio.get_running_loop().time() + self._options.grace.total_seconds()
        if self._watch is not None:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()
        for intake in self._intakes:
            intake.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._servicer.end()
        if self._receiving:
            await asyncio.wait(self._receiving, timeout=_left(end))
            for task in self._receiving:
                task.cancel()
        ended = await asyncio.gather(*self._receiving, return_exceptions=True)
        await self._processor.aclose(timeout=timedelta(seconds=_left(end)))
        # Last: until here, who calls is told that we are not available. gRPC itself would say that the call
        # was cancelled. The last answers go out; those who watch our health could stay for ever.
        await server.stop(min(_LAST_ANSWERS_SECONDS, _left(end)))
        for each in ended:
            if isinstance(each, Exception):
                raise each

    async def _listen(self, credentials: grpc.ServerCredentials | None) -> None:
        server = grpc.aio.server(options=_CHANNEL_OPTIONS)
        self._servicer = FSMServicer(
            Calls(self._store, self._processor, namespace=self._namespace),
            self._telemetry,
            timeout=self._options.timeout,
            release=importlib.metadata.version(_DISTRIBUTION),
            tls_enabled=credentials is not None,
        )
        add_StatemachineServiceServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set(SERVICE_NAME, _SERVING)
        if self._options.reflection:
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = self._options.address
        try:
            if credentials is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ServiceAddressError(f"the service cannot listen on {address!r}") from error
        await server.start()
        self._server = server
        _LOG.info("listening on %s, port %s", address, self._port)

    async def _watch_store(self) -> None:
        """Keep the health service up to date."""
        while True:
            await asyncio.sleep(self._options.health_interval.total_seconds())
            try:
                await self._store.health()
            except Exception as error:  # noqa: BLE001 - whatever it is, we cannot serve
                _LOG.warning("the store does not answer: %s", error)
                status = _NOT_SERVING
            else:
                status = _SERVING
            for name in ("", SERVICE_NAME):
                await self._health.set(name, status)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failed.set()


def _left(end: float) -> float:
    return max(0.0, end - asyncio.get_running_loop().time())
