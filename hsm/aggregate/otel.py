"""OpenTelemetry: metrics of journals. Needs the extra `otel`."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from persistence.journal import JournalObserver

try:
    from opentelemetry.metrics import MeterProvider, get_meter
except ImportError as _error:
    raise ImportError(
        "OpenTelemetry is not installed: pip install 'hsm-toolkit[otel]'", name=_error.name
    ) from _error

__all__ = ["JournalMetrics"]

_SCOPE: Final = "hsm.journal"


class JournalMetrics(JournalObserver):
    """Measures what journals do: `Journal(store, namespace, observer=JournalMetrics(namespace))`.

    | metric | counts |
    |---|---|
    | `hsm.journal.commits`, `hsm.journal.events` | commits, and the events in them |
    | `hsm.journal.conflicts` | commits that somebody else was ahead of |
    | `hsm.journal.retries` | tries after the first |
    | `hsm.journal.signals.dropped` | signals that had nothing to add to one not yet taken |
    | `hsm.journal.lag` | positions that a reader of the feed is behind; attribute `hsm.projection` |
    | `hsm.journal.collected` | rows that were removed; attribute `hsm.kind` |
    | `hsm.journal.collection.failures` | histories that could not be trimmed or collected |

    All of them have the attribute `hsm.namespace`.
    """

    def __init__(self, namespace: str, meter_provider: MeterProvider | None = None) -> None:
        """Measure with the global provider unless another one is given."""
        self._attributes = {"hsm.namespace": namespace}
        meter = get_meter(_SCOPE, meter_provider=meter_provider)
        self._commits = meter.create_counter("hsm.journal.commits", "{commit}", "Commits")
        self._events = meter.create_counter("hsm.journal.events", "{event}", "Events committed")
        self._conflicts = meter.create_counter(
            "hsm.journal.conflicts", "{commit}", "Commits that lost a race"
        )
        self._retries = meter.create_counter("hsm.journal.retries", "{commit}", "Tries after the first")
        self._dropped = meter.create_counter(
            "hsm.journal.signals.dropped", "{signal}", "Signals that had nothing to add"
        )
        self._lag = meter.create_gauge("hsm.journal.lag", "{position}", "Positions behind the feed")
        self._collected = meter.create_counter("hsm.journal.collected", "{row}", "Rows removed")
        self._failures = meter.create_counter(
            "hsm.journal.collection.failures", "{history}", "Histories that could not be trimmed or collected"
        )

    def committed(self, history: UUID, events: int) -> None:
        """See `JournalObserver`."""
        del history
        self._commits.add(1, self._attributes)
        self._events.add(events, self._attributes)

    def conflicted(self, history: UUID) -> None:
        """See `JournalObserver`."""
        del history
        self._conflicts.add(1, self._attributes)

    def retried(self, history: UUID) -> None:
        """See `JournalObserver`."""
        del history
        self._retries.add(1, self._attributes)

    def signal_dropped(self) -> None:
        """See `JournalObserver`."""
        self._dropped.add(1, self._attributes)

    def lagged(self, name: str, positions: int) -> None:
        """See `JournalObserver`."""
        self._lag.set(positions, {**self._attributes, "hsm.projection": name})

    def collected(self, kind: str, rows: int) -> None:
        """See `JournalObserver`."""
        self._collected.add(rows, {**self._attributes, "hsm.kind": kind})

    def collection_failed(self, history: UUID, error: Exception) -> None:
        """See `JournalObserver`."""
        del history, error
        self._failures.add(1, self._attributes)
