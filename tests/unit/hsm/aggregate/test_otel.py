from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from hsm.aggregate.otel import JournalMetrics
from persistence import connect
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    FeedItem,
    Journal,
    NewEvent,
    Output,
    Projection,
    Retention,
    VersionConflictError,
)
from persistence.store import SetRequest

HISTORY = uuid4()


def figures(reader: InMemoryMetricReader) -> dict[str, float]:
    """The sum of each metric."""
    data = reader.get_metrics_data()
    found: dict[str, float] = {}
    assert data is not None
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    assert isinstance(point, NumberDataPoint)
                    assert point.attributes is not None
                    assert point.attributes["hsm.namespace"] == "tests"
                    found[metric.name] = found.get(metric.name, 0) + point.value
    return found


async def ignore(item: FeedItem, output: Output) -> None:
    del item, output


async def test_journal_is_measured() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with connect("memory://") as store:
        journal = Journal(store, "tests", observer=JournalMetrics("tests", provider))
        async with journal.subscribe(HISTORY) as subscription:
            await journal.commit(HISTORY, [NewEvent(b"")] * 3, EPOCH)
            await journal.commit(HISTORY, [NewEvent(b"")], RETRY_NO_VC)
            await subscription.wait()
        with pytest.raises(VersionConflictError):
            await asyncio.gather(
                *(Journal(store, "tests").commit(uuid4(), [NewEvent(b"")], NO_VC) for _ in range(2)),
                journal.commit(HISTORY, [NewEvent(b"")], EPOCH),
            )
        await Projection(journal, "nothing", ignore).catch_up()
        await store.set(SetRequest(key=f"h/{uuid4().hex}", value=b"\xff\xff", partition=journal.partition))
        await Retention(journal).collect()

    found = figures(reader)
    provider.shutdown()
    assert found["hsm.journal.commits"] == 2
    assert found["hsm.journal.events"] == 4
    assert found["hsm.journal.conflicts"] == 1
    assert found["hsm.journal.signals.dropped"] >= 1
    assert found["hsm.journal.lag"] == 0
    assert found["hsm.journal.collection.failures"] == 1
