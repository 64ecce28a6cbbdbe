"""What an engine tells a meter."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint

from hsm.goalstate import Engine, Metrics
from hsm.testing import FakeClock
from tests.support.goals import SECOND, Blocked, Light, failing, noting, steady


def points(reader: InMemoryMetricReader, name: str) -> dict[str, tuple[int, float]]:
    """Count and sum (a histogram), or value, by action and error."""
    data = reader.get_metrics_data()
    found: dict[str, tuple[int, float]] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else []:
        for point in metric.data.data_points if metric.name == f"hsm.goalstate.{name}" else []:
            attributes = point.attributes or {}
            assert attributes["hsm.goalstate.engine"] == "lights"
            key = f"{attributes.get('hsm.goalstate.action', '')} {attributes.get('error.type', '')}".strip()
            if isinstance(point, HistogramDataPoint):
                found[key] = (point.count, point.sum)
            elif isinstance(point, NumberDataPoint):
                found[key] = (int(point.value), float(point.value))
    return found


async def test_engine_measures_its_work() -> None:
    clock, blocked = FakeClock(), Blocked()
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    engine = Engine(steady(clock, name="lights", workers=1, run_timeout=None, metrics=Metrics(meter)))
    engine.enqueue(Light("a", todo=[noting("well"), failing("try", 2)]))
    engine.enqueue(Light("b", todo=[blocked.action()]), clock.now() + 3600 * SECOND)
    engine.enqueue(Light("c"), clock.now() + 3600 * SECOND)
    clock.advance(5 * SECOND)
    async with engine:
        await clock.skip(timedelta(hours=2))
        assert {name: count for name, (count, _) in points(reader, "run.duration").items()} == {
            "well": 3,
            "try": 1,
            "try OSError": 2,
        }
        assert points(reader, "failures") == {"try OSError": (2, 2.0)}
        assert points(reader, "retries") == {"": (2, 2.0)}
        assert points(reader, "pop.delay") == {"": (4, 5.0)}
        assert points(reader, "in_flight") == {"": (1, 1.0)}
        assert points(reader, "queue.length") == {"": (1, 1.0)}
        assert points(reader, "total") == {"": (3, 3.0)}
        blocked.open.set()
        await engine.drain()
    assert points(reader, "total") == {}


async def test_run_that_the_end_of_the_engine_breaks_off_is_no_failure() -> None:
    clock, blocked = FakeClock(), Blocked()
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    engine = Engine(steady(clock, name="lights", metrics=Metrics(meter)))
    await engine.start()
    engine.enqueue(Light("a", todo=[blocked.action()]))
    await clock.skip(SECOND)
    await engine.stop(drain=False)
    assert {name.split()[-1] for name in points(reader, "run.duration")} == {"CancelledError"}
    assert points(reader, "failures") == {}


def test_nothing_of_opentelemetry_is_imported_before_there_is_a_meter() -> None:
    program = "import hsm.goalstate, sys; print('opentelemetry' in sys.modules, 'sqlite3' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
