"""Lanes: one batch a machine at a time, in order, whoever gives up and whatever is wrong with an event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from hsm.fsm import AcceptedEvent, GenericStoreError, InvalidDataError, StoreTimeoutError
from hsm.fsm._lanes import Lanes
from persistence.proto.statemachine_pb2 import EventOutcome
from tests.support.fsm.asking import request

NEVER = timedelta()
MOMENT = timedelta(milliseconds=1)


class Store:
    """Carries out batches while it is open, refuses some events, and keeps what it was given."""

    def __init__(self, *poison: str) -> None:
        self._poison = poison
        self._open = asyncio.Event()
        self.batches: list[list[str]] = []
        self.begun = asyncio.Event()
        self.error: Exception | None = None

    def open(self) -> None:
        self._open.set()

    async def __call__(self, name: str, id_: str, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        self.begun.set()
        await self._open.wait()
        ids = [each.request.event.event_id for each in events]
        self.batches.append(ids)
        if self.error is not None:
            raise self.error
        if bad := [each for each in ids if each in self._poison]:
            raise InvalidDataError(f"poison: {bad}")
        return [EventOutcome(details=each) for each in ids]


def events(*ids: str) -> list[AcceptedEvent]:
    return [AcceptedEvent(request("next", id_)) for id_ in ids]


def carry_out(lanes: Lanes, *ids: str, machine: str = "1") -> asyncio.Task[Sequence[EventOutcome]]:
    return asyncio.create_task(lanes.carry_out("counters", machine, events(*ids)))


async def details_of(task: asyncio.Task[Sequence[EventOutcome]]) -> list[str]:
    return [each.details for each in await task]


async def test_what_comes_meanwhile_is_the_next_batch() -> None:
    store = Store()
    lanes = Lanes(store, 3)
    first = carry_out(lanes, "a")
    await store.begun.wait()
    others = [carry_out(lanes, id_) for id_ in "bcde"]
    elsewhere = carry_out(lanes, "x", machine="2")
    store.open()

    assert await details_of(first) == ["a"]
    assert [await details_of(each) for each in others] == [["b"], ["c"], ["d"], ["e"]]
    await elsewhere
    assert [each for each in store.batches if each != ["x"]] == [["a"], ["b", "c", "d"], ["e"]]


async def test_more_events_than_a_batch_takes_are_several_batches() -> None:
    store = Store()
    store.open()

    assert await details_of(carry_out(Lanes(store, 2), *"abcde")) == [*"abcde"]

    assert store.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_what_was_begun_is_carried_out_before_what_came_later() -> None:
    store = Store()
    lanes = Lanes(store, 10)
    first = carry_out(lanes, "a", "b")
    await store.begun.wait()
    second = carry_out(lanes, "c")
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    store.open()

    assert await details_of(second) == ["c"]
    assert [id_ for batch in store.batches for id_ in batch] == ["a", "b", "c"]


async def test_event_at_fault_leaves_the_others_in_their_order() -> None:
    store = Store("bad")
    lanes = Lanes(store, 10)
    first = carry_out(lanes, "a", "bad", "b")
    await store.begun.wait()
    second = carry_out(lanes, "c")
    store.open()

    assert await details_of(second) == ["c"]
    with pytest.raises(InvalidDataError):
        await first
    assert [batch[0] for batch in store.batches if len(batch) == 1] == ["a", "bad", "b", "c"]


async def test_event_alone_at_fault_is_refused() -> None:
    store = Store("bad")
    store.open()

    with pytest.raises(InvalidDataError):
        await carry_out(Lanes(store, 10), "bad")

    assert store.batches == [["bad"]]


async def test_failure_is_told_to_all_and_the_lane_goes_on() -> None:
    store = Store()
    lanes = Lanes(store, 10)
    first = carry_out(lanes, "a")
    await store.begun.wait()
    second, third = carry_out(lanes, "b"), carry_out(lanes, "c")
    store.error = GenericStoreError("down")
    store.open()

    for task in (first, second, third):
        with pytest.raises(GenericStoreError):
            await task
    store.error = None
    assert await details_of(carry_out(lanes, "d")) == ["d"]


async def test_closing_waits_for_what_is_under_way() -> None:
    store = Store()
    lanes = Lanes(store, 10)
    tasks = [carry_out(lanes, "a"), carry_out(lanes, "b"), carry_out(lanes, "x", machine="2")]
    await store.begun.wait()
    closing = asyncio.create_task(lanes.aclose(NEVER))
    store.open()
    await closing

    assert all(task.done() for task in tasks)
    assert sorted(id_ for batch in store.batches for id_ in batch) == ["a", "b", "x"]


async def test_closing_gives_up_what_takes_too_long() -> None:
    store = Store()
    lanes = Lanes(store, 10)
    first = carry_out(lanes, "a")
    await store.begun.wait()
    second = carry_out(lanes, "b")
    await asyncio.sleep(0)
    first.cancel()  # so that a worker has both
    await asyncio.wait([first])

    await lanes.aclose(MOMENT)

    with pytest.raises(StoreTimeoutError, match="closed"):
        await second
    store.open()
    assert await details_of(carry_out(lanes, "c")) == ["c"]
