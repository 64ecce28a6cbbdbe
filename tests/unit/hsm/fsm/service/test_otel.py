"""OpenTelemetry of the service: calls are spans of the client's trace, and calls and messages are measured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from hsm.fsm.database import DatabaseStore
from hsm.fsm.service.otel import OpenTelemetry
from tests.support.fsm.service import refusal, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def telemetry(
    reader: InMemoryMetricReader, spans: InMemorySpanExporter
) -> AsyncIterator[OpenTelemetry]:
    meters, tracers = MeterProvider([reader]), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    yield OpenTelemetry(meters, tracers)
    meters.shutdown()
    tracers.shutdown()


def points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


async def test_calls_are_traced_and_measured(
    telemetry: OpenTelemetry, reader: InMemoryMetricReader, spans: InMemorySpanExporter
) -> None:
    async with DatabaseStore("memory://otel") as store, serving(store, telemetry=telemetry) as client:
        await client.GetAllConfigurations(StringValue(), metadata=(("traceparent", PARENT),))
        await refusal(client.GetConfiguration(StringValue(value="a:b")))

    first, second = spans.get_finished_spans()
    assert first.name == "statemachine.v1beta.StatemachineService/GetAllConfigurations"
    assert format(first.context.trace_id, "032x") == TRACE
    assert first.attributes is not None
    assert second.attributes is not None
    assert first.attributes["rpc.grpc.status"] == "OK"
    assert second.attributes["rpc.grpc.status"] == "NOT_FOUND"
    assert {first.status.status_code, second.status.status_code} == {StatusCode.UNSET}
    measured = {
        (point.attributes["rpc.method"], point.attributes["rpc.grpc.status"]): point.count
        for point in points(reader, "rpc.server.duration")
    }
    assert measured == {("GetAllConfigurations", "OK"): 1, ("GetConfiguration", "NOT_FOUND"): 1}


def test_messages_are_counted(telemetry: OpenTelemetry, reader: InMemoryMetricReader) -> None:
    telemetry.message("events", "acknowledged")
    telemetry.message("events", "acknowledged")
    telemetry.outcome("Ok", 0.5)

    (messages,) = points(reader, "hsm.fsm.messages")
    (delay,) = points(reader, "hsm.fsm.outcome.delay")
    assert (messages.value, delay.sum) == (2, 0.5)
