"""Journals against a list of events: several writers, with a store that fails, in whatever order."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid5

import attrs
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from hsm.testing import Call, FaultyStore
from persistence import CommitOutcomeUnknownError, EngineStore, connect, require
from persistence.errors import StoreUnavailableError
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    EventCommitUnknownError,
    EventId,
    Expectation,
    FeedItem,
    FeedKind,
    Journal,
    JournalOptions,
    Retention,
    RetentionOptions,
    StaleCursorError,
    UnknownHistoryError,
    VersionConflictError,
)
from tests.support.histories import drain, numbered, rows
from tests.support.servers import Server

T = TypeVar("T")
HISTORIES = [uuid5(UUID(int=0), name) for name in "abc"]
WRITERS = 3


@attrs.define
class Model:
    """What a history should hold.

    Attributes:
        events: ids and codes of this life.
        gone: ids of earlier lives.
        log: what the feed should tell of it: ids, and None for a deletion.
    """

    events: list[tuple[EventId, int]] = attrs.field(factory=list[tuple[EventId, int]])
    gone: list[EventId] = attrs.field(factory=list[EventId])
    log: list[EventId | None] = attrs.field(factory=list["EventId | None"])

    @property
    def version(self) -> EventId:
        return self.events[-1][0] if self.events else EPOCH


class Journals(RuleBasedStateMachine):
    """Each writer has a journal of its own on one store that may fail, as processes have."""

    url: Callable[[], str]
    options = JournalOptions(hash_chain=True)

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self.store = self.run(self._open())
        self.faulty = FaultyStore(self.store)
        self.journals = [Journal(self.faulty, "model", options=self.options) for _ in range(WRITERS)]
        self.models = {history: Model() for history in HISTORIES}
        self.feed: list[FeedItem] = []
        self._numbers = itertools.count(1)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _open(self) -> EngineStore:
        self._connection = connect(type(self).url())
        return require(await self._connection.__aenter__(), EngineStore)

    def teardown(self) -> None:
        self.run(self.store.aclose())
        self._runner.close()

    def _expectation(self, history: UUID, choice: str) -> Expectation:
        model = self.models[history]
        if choice == "stale":
            stale = [*model.gone, *(id_ for id_, _ in model.events[:-1])]
            return stale[-1] if stale else EPOCH
        choices: dict[str, Expectation] = {
            "right": model.version,
            "epoch": EPOCH,
            "no": NO_VC,
            "retry": RETRY_NO_VC,
        }
        return choices[choice]

    @rule(
        writer=st.integers(0, WRITERS - 1),
        history=st.sampled_from(HISTORIES),
        choice=st.sampled_from(["right", "right", "epoch", "stale", "no", "retry"]),
        count=st.integers(1, 3),
        fault=st.sampled_from(["", "", "", "lost before", "lost after", "down before"]),
    )
    def commit(self, writer: int, history: UUID, choice: str, count: int, fault: str) -> None:
        model, expected = self.models[history], self._expectation(history, choice)
        events = numbered(*itertools.islice(self._numbers, count))
        right = not isinstance(expected, EventId) or expected == model.version
        self._fail(fault)
        try:
            committed = self.run(self.journals[writer].commit(history, events, expected)).events
        except VersionConflictError:
            assert not right
            assert model.version != EPOCH
            return
        except UnknownHistoryError:
            assert not right
            assert model.version == EPOCH
            return
        except StoreUnavailableError:
            assert fault == "down before"
            return
        except EventCommitUnknownError as error:
            committed = self.run(
                self.journals[-1].commit(history, [each.again() for each in error.events], expected)
            ).events
        finally:
            self.faulty.before = self.faulty.after = None
        assert right
        model.events += [(event.id, event.message().status_code) for event in committed]
        model.log += [event.id for event in committed]

    @rule(
        history=st.sampled_from(HISTORIES),
        writers=st.lists(st.integers(0, WRITERS - 1), min_size=2, max_size=4),
        retry=st.booleans(),
    )
    def commit_at_once(self, history: UUID, writers: list[int], *, retry: bool) -> None:
        """Several writers at once: each event is in the chain, or its writer has met a conflict."""
        model = self.models[history]
        expected: Expectation = RETRY_NO_VC if retry else model.version
        numbers = list(itertools.islice(self._numbers, len(writers)))

        async def work() -> list[object]:
            return await asyncio.gather(
                *(
                    self.journals[writer].commit(history, numbered(number), expected)
                    for writer, number in zip(writers, numbers, strict=True)
                ),
                return_exceptions=True,
            )

        outcomes = self.run(work())
        done = {
            number
            for number, outcome in zip(numbers, outcomes, strict=True)
            if not isinstance(outcome, VersionConflictError)
        }
        assert not [each for each in outcomes if isinstance(each, Exception) and number_of(each) is None]
        assert len(done) == (len(writers) if retry else 1)
        found = self.run(drain(self.journals[0].find(history)))[len(model.events) :]
        assert {event.message().status_code for event in found} == done
        model.events += [(event.id, event.message().status_code) for event in found]
        model.log += [event.id for event in found]

    @rule(writer=st.integers(0, WRITERS - 1), history=st.sampled_from(HISTORIES))
    def commit_again(self, writer: int, history: UUID) -> None:
        events = self.run(drain(self.journals[writer].find(history)))
        if events:
            again = [event.again() for event in events[-2:]]
            repeated = self.run(self.journals[writer].commit(history, again, events[-1].id))
            assert list(repeated.events) == events[-2:]

    @rule(
        writer=st.integers(0, WRITERS - 1),
        history=st.sampled_from(HISTORIES),
        choice=st.sampled_from(["right", "stale", "no"]),
        fault=st.sampled_from(["", "", "lost before", "lost after"]),
    )
    def delete(self, writer: int, history: UUID, choice: str, fault: str) -> None:
        model, expected = self.models[history], self._expectation(history, choice)
        existed, right = bool(model.events), expected in (model.version, NO_VC)
        journal = self.journals[writer]
        self._fail(fault)
        try:
            self.run(journal.delete(history, expected))
        except VersionConflictError:
            assert existed
            assert not right
            return
        except CommitOutcomeUnknownError:
            self.faulty.before = self.faulty.after = None
            self.run(journal.delete(history, expected))
        finally:
            self.faulty.before = self.faulty.after = None
        if existed:
            assert right
            model.gone += [id_ for id_, _ in model.events]
            model.events.clear()
            model.log.append(None)

    def _fail(self, fault: str) -> None:
        if not fault:
            return
        error = (
            StoreUnavailableError("down") if fault.startswith("down") else CommitOutcomeUnknownError("lost")
        )

        async def fail(call: Call) -> None:
            if call.method == "multi":
                self.faulty.before = self.faulty.after = None
                raise error

        setattr(self.faulty, fault.split()[1], fail)

    @rule(writer=st.integers(0, WRITERS - 1), limit=st.integers(1, 7))
    def read_feed(self, writer: int, limit: int) -> None:
        position = len(self.feed)
        self.feed += self.run(self.journals[writer].feed.read(position, limit=limit))

    @rule(writer=st.integers(0, WRITERS - 1), forget=st.booleans())
    def collect(self, writer: int, forget: bool) -> None:
        journal, now, day = self.journals[writer], timedelta(), timedelta(days=1)
        options = RetentionOptions(events_kept=now, tail_grace=now, deletions_kept=now if forget else day)
        report = self.run(Retention(journal, options=options).collect())
        assert report.failures == []
        left = {item.key for item in self.run(rows(self.store, journal, "e/"))}
        alive = {
            f"e/{history.hex}/{id_.hex()}"
            for history, model in self.models.items()
            for id_, _ in model.events
        }
        assert left == alive
        assert self.run(rows(self.store, journal, "v/")) == []

    @invariant()
    def histories_hold_what_was_committed(self) -> None:
        journal = self.journals[0]
        for history, model in self.models.items():
            assert self.run(journal.head(history)) == model.version
            events = self.run(drain(journal.find(history)))
            assert [(event.id, event.message().status_code) for event in events] == model.events
            assert self.run(drain(journal.find(history, reverse=True))) == events[::-1]
            if model.gone:
                with pytest.raises(StaleCursorError):
                    self.run(drain(journal.find(history, model.gone[-1])))
            if model.events:
                middle = model.events[len(model.events) // 2][0]
                rest = self.run(drain(journal.find(history, middle)))
                assert [event.id for event in rest] == [id_ for id_, _ in model.events if id_ > middle]

    @invariant()
    def feed_is_a_prefix_of_what_was_committed(self) -> None:
        assert [item.position for item in self.feed] == list(range(1, len(self.feed) + 1))
        for history, model in self.models.items():
            own = [item.event_id for item in self.feed if item.history == history]
            assert own == model.log[: len(own)]

    def check_whole_feed(self) -> None:
        journal = self.journals[0]
        count = self.run(journal.feed.last_position())
        items = self.run(journal.feed.read(0, limit=count + 1))
        assert len(items) == sum(len(model.log) for model in self.models.values()) == count
        for history, model in self.models.items():
            own = [item for item in items if item.history == history]
            assert [item.event_id for item in own] == model.log
            alive = [item.event_id for item in own if item.kind is FeedKind.EVENT]
            assert alive == [id_ for id_, _ in model.events]
        told = [(item.position, item.event_id) for item in items]
        assert [(item.position, item.event_id) for item in self.feed] == told[: len(self.feed)]


def number_of(error: Exception) -> bool | None:
    """None for an error that a commit at the same time as others may not meet."""
    return True if isinstance(error, VersionConflictError) else None


@pytest.mark.parametrize(
    ("kind", "examples"),
    [
        ("memory", 60),
        ("sqlite", 12),
        pytest.param("postgresql", 8, marks=pytest.mark.server),
        pytest.param("valkey", 8, marks=pytest.mark.server),
    ],
)
def test_journals_do_what_the_model_does(
    kind: str, examples: int, server_of: Callable[[str], Server]
) -> None:
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:

        def url() -> str:
            if kind in ("memory", "sqlite"):
                return (
                    "memory://" if kind == "memory" else f"sqlite:///{Path(folder) / f'{next(numbers)}.db'}"
                )
            return server_of(kind).fresh_url()

        class OnThis(Journals):
            def teardown(self) -> None:
                try:
                    self.check_whole_feed()
                finally:
                    super().teardown()

        OnThis.url = staticmethod(url)
        run_state_machine_as_test(
            OnThis,
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
