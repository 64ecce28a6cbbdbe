"""Callbacks at work: each outcome of an attempt, pauses, exhaustion, and what is saved before what."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta

import attrs
import pytest

from hsm import ExecutionKey, Key, MachineType, Node, Ref, Registry
from hsm.components import callback as callbacks
from hsm.components.callback import (
    CALLBACK,
    Callback,
    CallbackOptions,
    Confirmed,
    Outcome,
    Refused,
    Request,
    Scheduled,
    State,
    Unavailable,
)
from hsm.engine import Backoff, Breaker, EngineOptions
from hsm.testing import Call, FaultyStore, TestEngine
from persistence.errors import CommitOutcomeUnknownError, PersistenceError, StoreBusyError
from persistence.stores.memory import MemoryStore
from tests.support.jobs import small

URL = "https://example.org/hook"
KEY = ExecutionKey("test", "1")


class Script:
    """A sender that answers from a list, and raises what is an error in it."""

    def __init__(self, outcomes: Iterable[Outcome | Exception]) -> None:
        self.outcomes = list(outcomes)
        self.sent: list[Request] = []
        self.seen: list[State] = []

    async def __call__(self, request: Request) -> Outcome:
        self.sent.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def registry(self, options: CallbackOptions | None = None) -> Registry:
        registry = Registry(debug=True)
        options = options or CallbackOptions(random=random.Random(1))
        callbacks.register(registry, self, options, observer=lambda _, state: self.seen.append(state))
        return registry


async def start(engine: TestEngine, *, max_attempts: int = 0) -> Ref:
    data = Callback.new(Request(URL), request_id="r", max_attempts=max_attempts)
    return await engine.start(KEY, data, on_start=lambda node: node.apply(callbacks.scheduled, Scheduled()))


async def callback(engine: TestEngine, ref: Ref | None = None) -> Callback:
    return await engine.read(ref or Ref(KEY), lambda node: node.data(Callback))


async def test_confirmed_at_the_first_attempt() -> None:
    script = Script([Confirmed()])
    async with TestEngine(script.registry()) as engine:
        await start(engine)
        await engine.run_until_idle()
        data = await callback(engine)
    assert (data.state, data.attempt, script.seen) == (State.SUCCEEDED, 1, [State.SUCCEEDED])
    assert script.sent == [Request(URL, headers={"Idempotency-Key": "r"})]


async def test_refused_is_not_tried_again() -> None:
    script = Script([Refused("gone", "HTTP 410")])
    async with TestEngine(script.registry()) as engine:
        await start(engine)
        await engine.run_until_idle()
        data = await callback(engine)
    assert (data.state, len(script.sent)) == (State.FAILED, 1)
    assert data.last_failure is not None
    assert (data.last_failure.message, data.last_failure.retryable) == ("gone", False)


async def test_unavailable_is_tried_again_with_the_same_request_id() -> None:
    script = Script([Unavailable("busy"), Unavailable("busy"), Confirmed()])
    async with TestEngine(script.registry()) as engine:
        await start(engine)
        await engine.run_until_idle()
        data = await callback(engine)
    assert (data.state, data.attempt) == (State.SUCCEEDED, 3)
    assert script.seen == [State.BACKING_OFF, State.BACKING_OFF, State.SUCCEEDED]
    assert {request.headers["Idempotency-Key"] for request in script.sent} == {"r"}


async def test_pauses_double_up_to_the_longest_less_a_fifth_by_chance() -> None:
    script = Script([*[Unavailable("busy")] * 8, Confirmed()])
    delays = Backoff(timedelta(seconds=1), timedelta(seconds=20))
    registry = script.registry(CallbackOptions(delays=delays, random=random.Random(3)))
    async with TestEngine(registry, options=EngineOptions(breaker=None)) as engine:
        await start(engine)
        await engine.drain()
        pauses: list[float] = []
        while (await callback(engine)).state is State.BACKING_OFF:
            before = engine.now()
            assert await engine.skip_to_next() is not None
            pauses.append((engine.now() - before).total_seconds())
    for pause, longest in zip(pauses, [1, 2, 4, 8, 16, 20, 20, 20], strict=True):
        assert 0.8 * longest <= pause <= longest
    assert len({pause / longest for pause, longest in zip(pauses[-3:], [20] * 3, strict=True)}) == 3


@pytest.mark.parametrize(("asked", "given"), [(90, 90), (0.1, None), (10**6, 86400)])
async def test_retry_after_is_the_shortest_pause_within_reason(asked: float, given: float | None) -> None:
    script = Script([Unavailable("later", retry_after=timedelta(seconds=asked)), Confirmed()])
    async with TestEngine(script.registry()) as engine:
        await start(engine)
        await engine.drain()
        data = await callback(engine)
        assert data.next_attempt_time is not None
        pause = (data.next_attempt_time - engine.now()).total_seconds()
        assert pause == given if given is not None else 0.8 <= pause <= 1
        await engine.run_until_idle()


async def test_receiver_that_asks_for_years_closes_its_queue_within_reason() -> None:
    script = Script([Unavailable("later", retry_after=timedelta(days=3650)), Confirmed()])
    async with TestEngine(script.registry(), options=small(breaker=Breaker(failures=1))) as engine:
        await start(engine)
        await engine.skip(timedelta(days=1, minutes=1))
        assert (await callback(engine)).state is State.SUCCEEDED


async def test_last_attempt_that_fails_is_the_end() -> None:
    script = Script([Unavailable("busy", "HTTP 503")] * 3)
    async with TestEngine(script.registry()) as engine:
        await start(engine, max_attempts=3)
        await engine.run_until_idle()
        data = await callback(engine)
    assert (data.state, data.attempt, len(script.sent)) == (State.FAILED, 3, 3)
    assert data.last_failure is not None
    assert (data.last_failure.type, data.last_failure.retryable) == ("HTTP 503", True)


async def test_error_of_the_sender_counts_against_the_task_and_not_the_attempts() -> None:
    script = Script([RuntimeError("a bug"), Confirmed()])
    async with TestEngine(script.registry()) as engine:
        await start(engine, max_attempts=1)
        await engine.run_until_idle()
        data = await callback(engine)
    assert (data.state, data.attempt, len(script.sent)) == (State.SUCCEEDED, 1, 2)


@pytest.mark.parametrize(
    ("times", "patience", "seen"),
    [(3, timedelta(minutes=1), [State.BACKING_OFF, State.SUCCEEDED]), (1, timedelta(), [State.SUCCEEDED])],
)
@pytest.mark.parametrize("error", [StoreBusyError, CommitOutcomeUnknownError])
async def test_outcome_that_cannot_be_saved_is_saved_later_or_the_request_repeated(
    times: int, patience: timedelta, seen: list[State], error: type[PersistenceError]
) -> None:
    """Word of a destination that is down must not stand in for the lost write."""
    script = Script([Unavailable("busy"), Confirmed()])
    failures: list[Call] = []

    async def fail_writes_after_an_attempt(call: Call) -> None:
        if call.write and script.sent and len(failures) < times:
            failures.append(call)
            raise error("locked")

    options = CallbackOptions(random=random.Random(1), patience=patience)
    async with MemoryStore() as memory:
        store = FaultyStore(memory)
        store.before = fail_writes_after_an_attempt
        async with TestEngine(script.registry(options), store) as engine:
            await start(engine)
            await engine.run_until_idle()
            data = await callback(engine)
    assert len(failures) == times
    assert (data.state, data.attempt, script.seen) == (State.SUCCEEDED, len(seen), seen)
    assert len(script.sent) == 2


@attrs.define
class Owner:
    """A machine that has callbacks below it."""


class OwnerDefinition:
    data_type = Owner

    @property
    def type(self) -> MachineType:
        return MachineType(1, "owner")

    def serialize(self, _: Owner, /) -> bytes:
        return b"owner"

    def deserialize(self, _: bytes, /) -> Owner:
        return Owner()


async def test_works_below_any_machine() -> None:
    keys = [Key(CALLBACK.id, "first"), Key(CALLBACK.id, "second")]
    script = Script([Unavailable("busy"), Confirmed(), Confirmed()])
    registry = script.registry()
    registry.register_machine(OwnerDefinition())

    def add_callbacks(root: Node) -> None:
        for key in keys:
            child = root.add_child(key, Callback.new(Request(f"{URL}/{key.id}"), request_id=key.id))
            child.apply(callbacks.scheduled, Scheduled())

    async with TestEngine(registry) as engine:
        await engine.start(KEY, Owner(), on_start=add_callbacks)
        await engine.run_until_idle()
        states = [(await callback(engine, Ref(KEY, (key,)))).state for key in keys]
    assert states == [State.SUCCEEDED, State.SUCCEEDED]
    assert Counter(request.url for request in script.sent) == {f"{URL}/first": 2, f"{URL}/second": 1}
