"""Metrics of the goal-state engine, on a meter of OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

__all__ = ["Gauges", "Metrics"]

_SECONDS: Final = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600)


class Gauges(Protocol):
    """The state of an engine. May be asked from any thread, at any time."""

    @property
    def name(self) -> str:
        """Of the engine."""
        ...

    @property
    def total(self) -> int:
        """Entities that the engine knows."""
        ...

    @property
    def queue_length(self) -> int:
        """Entities that are scheduled, as far as they are in memory."""
        ...

    @property
    def in_flight(self) -> int:
        """Entities that are run now."""
        ...


class Metrics:
    """Measures engines: `Options(metrics=Metrics(get_meter("hsm.goalstate")))`. Serves any number of them.

    What is measured stands in the guide "Bring entities to their goal". Needs the extra `otel`, as
    whoever has a meter has; nothing of OpenTelemetry is imported before one of these is made.
    """

    def __init__(self, meter: Meter) -> None:
        self._engines: list[Gauges] = []
        self._duration = _histogram(meter, "hsm.goalstate.run.duration", "Runs of actions")
        self._delay = _histogram(meter, "hsm.goalstate.pop.delay", "From due to run")
        self._failures = meter.create_counter("hsm.goalstate.failures", "{run}", "Runs that have failed")
        self._retries = meter.create_counter("hsm.goalstate.retries", "{run}", "Retries that were scheduled")
        self._missing = meter.create_counter(
            "hsm.goalstate.missing", "{entity}", "Due entities without an entity"
        )
        gauges: dict[str, tuple[str, Callable[[Gauges], int]]] = {
            "in_flight": ("Entities that are run now", lambda engine: engine.in_flight),
            "queue.length": ("Scheduled entities in memory", lambda engine: engine.queue_length),
            "total": ("Entities that the engine knows", lambda engine: engine.total),
        }
        for name, (text, value) in gauges.items():
            meter.create_observable_up_down_counter(
                f"hsm.goalstate.{name}", [self._observed(value)], "{entity}", text
            )

    def opened(self, gauges: Gauges) -> None:
        """An engine has been started."""
        self._engines.append(gauges)

    def closed(self, gauges: Gauges) -> None:
        """An engine is stopped."""
        self._engines.remove(gauges)

    def ran(self, engine: str, action: str, seconds: float, error: BaseException | None) -> None:
        """An action has ended, well or not."""
        attributes = {"hsm.goalstate.engine": engine, "hsm.goalstate.action": action}
        if error is not None:
            attributes["error.type"] = type(error).__qualname__
            # The end of the engine is nobody's failure.
            if not isinstance(error, asyncio.CancelledError):
                self._failures.add(1, attributes.copy())
        self._duration.record(seconds, attributes)

    def failed(self, engine: str, error: BaseException) -> None:
        """An evaluation has failed outside of actions."""
        self._failures.add(
            1,
            {
                "hsm.goalstate.engine": engine,
                "hsm.goalstate.action": "",
                "error.type": type(error).__qualname__,
            },
        )

    def popped(self, engine: str, delay_seconds: float) -> None:
        """An entity is taken out of the queue, so long after it was due."""
        self._delay.record(delay_seconds, {"hsm.goalstate.engine": engine})

    def retried(self, engine: str) -> None:
        """An entity that has failed is scheduled again."""
        self._retries.add(1, {"hsm.goalstate.engine": engine})

    def missing(self, engine: str) -> None:
        """An entity is due that does not exist any more."""
        self._missing.add(1, {"hsm.goalstate.engine": engine})

    def _observed(self, value: Callable[[Gauges], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation as _Observation  # noqa: PLC0415 - an extra

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            sums: dict[str, int] = {}
            for engine in list(self._engines):
                sums[engine.name] = sums.get(engine.name, 0) + value(engine)
            return [_Observation(total, {"hsm.goalstate.engine": name}) for name, total in sums.items()]

        return observe


def _histogram(meter: Meter, name: str, text: str) -> Histogram:
    return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=_SECONDS)
