"""Sending over real HTTP: what each answer, and each lack of one, means."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from hsm import ExecutionKey, Registry
from hsm.components.callback import (
    Callback,
    Confirmed,
    Outcome,
    Refused,
    Request,
    Scheduled,
    Unavailable,
    register,
    scheduled,
)
from hsm.components.callback.http import HttpSender, retry_after_of
from hsm.engine import EngineOptions
from hsm.engine.otel import OpenTelemetry
from hsm.testing import TestEngine

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A local server whose only handler the test sets."""

    def __init__(self) -> None:
        self.handler: Handler = answer(200)
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self.handler(request)


def answer(status: int, *, text: str = "", headers: dict[str, str] | None = None) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text or None, headers=headers)

    return handler


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def sender() -> AsyncIterator[HttpSender]:
    async with HttpSender() as sender:
        yield sender


async def test_sends_method_headers_path_and_body_as_they_are(server: Server, sender: HttpSender) -> None:
    headers = {"X-A": "ü", "Content-Type": "application/x-own"}
    assert await sender(Request(f"{server.url}/a%2Fb%41?c=%2F#d", "PATCH", headers, b"\0\xff")) == Confirmed()
    (request,) = server.requests
    assert (request.method, request.raw_path) == ("PATCH", "/a%2Fb%41?c=%2F")
    assert (request.headers["X-A"], request.headers["Content-Type"]) == ("ü", "application/x-own")
    assert server.bodies == [b"\0\xff"]


async def test_request_carries_the_trace_of_the_run_that_makes_it(server: Server, sender: HttpSender) -> None:
    spans = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    options = EngineOptions(telemetry=OpenTelemetry(NoOpMeterProvider(), tracers))
    registry = Registry()
    register(registry, sender)
    async with TestEngine(registry, options=options) as engine:
        no_headers: dict[str, str] = {}
        for number, headers in enumerate([no_headers, {"TraceParent": "my own"}]):
            callback = Callback.new(Request(server.url, headers=headers), request_id="r")
            key = ExecutionKey("tests", f"{number}")
            await engine.start(key, callback, on_start=lambda node: node.apply(scheduled, Scheduled()))
            await engine.drain()

    runs = [span for span in spans.get_finished_spans() if span.kind is SpanKind.CONSUMER]
    context = runs[0].get_span_context()
    assert context is not None
    traced, own = server.requests
    assert traced.headers["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert own.headers.getall("traceparent") == ["my own"]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_2xx_confirms(server: Server, sender: HttpSender, status: int) -> None:
    server.handler = answer(status)
    assert await sender(Request(server.url)) == Confirmed()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
async def test_408_429_and_5xx_may_be_tried_again(server: Server, sender: HttpSender, status: int) -> None:
    server.handler = answer(status, text=" not\n now ")
    outcome = await sender(Request(server.url))
    assert isinstance(outcome, Unavailable)
    assert (outcome.type, outcome.retry_after) == (f"HTTP {status}", None)
    assert outcome.message.endswith(": not now")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 301, 304, 307])
async def test_every_other_answer_refuses(server: Server, sender: HttpSender, status: int) -> None:
    server.handler = answer(status, headers={"Location": "/elsewhere"})
    outcome = await sender(Request(server.url))
    assert isinstance(outcome, Refused)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_passed_on(server: Server, sender: HttpSender, status: int) -> None:
    server.handler = answer(status, headers={"Retry-After": "7"})
    outcome = await sender(Request(server.url))
    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after == timedelta(seconds=7)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("Tue, 01 Jan 2030 12:00:30 GMT", 30),
        ("Tue, 01 Jan 2030 11:00:00 GMT", 0),
        ("Tuesday, 01-Jan-30 12:01:00 GMT", 60),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u0661", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: int | None) -> None:
    now = datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert retry_after_of(header, now) == (None if seconds is None else timedelta(seconds=seconds))


def test_retry_after_beyond_all_time_is_a_long_time() -> None:
    pause = retry_after_of("9" * 1000, datetime(2030, 1, 1, tzinfo=UTC))
    assert pause is not None
    assert pause > timedelta(days=365)


async def test_no_answer_in_time_may_be_tried_again(server: Server, sender: HttpSender) -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    server.handler = hang
    outcome = await sender(Request(server.url, timeout=timedelta(milliseconds=100)))
    assert outcome == Unavailable("no answer within 0.1 s", "Timeout")


async def test_broken_connection_may_be_tried_again(server: Server, sender: HttpSender) -> None:
    async def abort(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.handler = abort
    assert isinstance(await sender(Request(server.url)), Unavailable)


async def test_refused_connection_may_be_tried_again(sender: HttpSender) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        outcome = await sender(Request(f"http://127.0.0.1:{unused.getsockname()[1]}"))
    assert isinstance(outcome, Unavailable)


async def test_answer_that_is_not_http_may_be_tried_again(sender: HttpSender) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\1\2 hello\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as babbler:
        port = babbler.sockets[0].getsockname()[1]
        outcome = await sender(Request(f"http://127.0.0.1:{port}"))
    assert isinstance(outcome, Unavailable)


async def test_host_that_does_not_exist_may_be_tried_again(sender: HttpSender) -> None:
    assert isinstance(await sender(Request("http://no-such-host.invalid/")), Unavailable)


@pytest.mark.parametrize("status", [200, 404])
async def test_status_counts_though_the_rest_of_the_answer_never_comes(
    server: Server, sender: HttpSender, status: int
) -> None:
    async def begin(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await response.write(b"and then")
        await asyncio.Event().wait()
        return response

    server.handler = begin
    outcome: Outcome = await sender(Request(server.url, timeout=timedelta(milliseconds=200)))
    assert isinstance(outcome, Confirmed if status == 200 else Refused)


async def test_answer_without_end_is_not_read_to_the_end(server: Server, sender: HttpSender) -> None:
    async def pour(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(100_000))
        return response

    server.handler = pour
    assert await sender(Request(server.url, timeout=timedelta(seconds=30))) == Confirmed()


async def test_compressed_answer_is_left_as_it_is(server: Server, sender: HttpSender) -> None:
    async def bomb(_: web.Request) -> web.StreamResponse:
        headers = {"Content-Encoding": "gzip"}
        return web.Response(body=gzip.compress(bytes(10**7)), headers=headers)

    server.handler = bomb
    assert await sender(Request(server.url)) == Confirmed()


async def test_cookies_are_not_kept(server: Server, sender: HttpSender) -> None:
    server.handler = answer(200, headers={"Set-Cookie": "a=b"})
    await sender(Request(server.url))
    await sender(Request(server.url))
    assert all("Cookie" not in request.headers for request in server.requests)


async def test_closed_sender_says_how_to_open_it() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await HttpSender()(Request("http://example.org"))
