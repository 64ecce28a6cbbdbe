from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from hsm.testing import Call, CutOffError, FakeClock, FaultyStore
from persistence import CommitOutcomeUnknownError, InvalidRequestError, TransactionTooLargeError, connect
from persistence.errors import StoreBrokenError, StoreCorruptError, StoreUnavailableError
from persistence.journal import (
    NO_VC,
    FeedItem,
    FeedKind,
    Journal,
    JournalObserver,
    JournalOptions,
    Output,
    Projection,
    ProjectionOptions,
)
from persistence.store import EngineStore
from persistence.stores.memory import MemoryStore
from tests.support.histories import numbered

HISTORY = uuid4()


async def tally(item: FeedItem, output: Output) -> None:
    """Counts the items, notes each, and adds up the status codes."""
    count = int(await output.get("count") or 0) + 1
    output.set("count", str(count).encode())
    output.set(f"seen/{count:06d}", str(item.position).encode())
    if item.event is not None:
        total = int(await output.get("total") or 0) + item.event.message().status_code
        output.set("total", str(total).encode())


async def seen(projection: Projection) -> list[int]:
    return [int(value) async for _, value in projection.output().scan("seen/")]


async def committed(journal: Journal, count: int) -> None:
    for number in range(count):
        await journal.commit(HISTORY, numbered(number), NO_VC)


@pytest.mark.parametrize("batch", [1, 3, 200])
async def test_projection_works_in_every_item_once_and_in_order(journal: Journal, batch: int) -> None:
    projection = Projection(journal, "tally", tally, options=ProjectionOptions(batch=batch))
    await committed(journal, 5)
    assert await projection.catch_up() == 5
    await committed(journal, 4)

    assert await projection.lag() == 4
    assert await projection.catch_up() == 9
    assert await projection.catch_up() == 9

    assert await seen(projection) == list(range(1, 10))
    assert await projection.output().get("total") == str(sum(range(5)) + sum(range(4))).encode()
    assert await projection.position() == 9
    assert await projection.lag() == 0


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("write", [2, 3, 4])
async def test_crash_at_any_write_counts_nothing_twice(
    store: EngineStore, write: int, *, carried_out: bool
) -> None:
    journal = Journal(store, "tests")
    await committed(journal, 6)
    faulty = FaultyStore(store)
    faulty.cut_off_at(write, carried_out=carried_out)
    dying = Projection(Journal(faulty, "tests"), "tally", tally, options=ProjectionOptions(batch=2))
    with pytest.raises(CutOffError):
        await dying.catch_up()

    projection = Projection(journal, "tally", tally)
    await projection.catch_up()

    assert await seen(projection) == list(range(1, 7))


@pytest.mark.parametrize("carried_out", [True, False])
async def test_unknown_outcome_counts_nothing_twice(store: EngineStore, *, carried_out: bool) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    await committed(journal, 3)
    await journal.feed.last_position()

    async def lose(call: Call) -> None:
        if call.method == "multi":
            faulty.before = faulty.after = None
            raise CommitOutcomeUnknownError("the line went dead")

    setattr(faulty, "after" if carried_out else "before", lose)
    projection = Projection(journal, "tally", tally)

    assert await projection.catch_up() == 3
    assert await seen(projection) == [1, 2, 3]


async def test_projections_of_one_name_share_the_work(store: EngineStore) -> None:
    journals = [Journal(store, "tests") for _ in range(3)]
    options = ProjectionOptions(batch=3)
    projections = [Projection(journal, "tally", tally, options=options) for journal in journals]
    await committed(journals[0], 30)

    async with asyncio.timeout(60):
        await asyncio.gather(*(projection.catch_up() for projection in projections))

    assert await seen(projections[0]) == list(range(1, 31))


async def test_projections_of_several_names_do_not_meet(journal: Journal) -> None:
    one, two = Projection(journal, "one", tally), Projection(journal, "two", tally)
    await committed(journal, 3)
    await one.catch_up()

    assert await seen(two) == []
    assert await two.catch_up() == 3


async def test_failing_handler_leaves_the_output_as_it_was(journal: Journal) -> None:
    healthy = False

    async def fail(item: FeedItem, output: Output) -> None:
        await tally(item, output)
        if item.position == 3 and not healthy:
            raise ZeroDivisionError

    projection = Projection(journal, "tally", fail, options=ProjectionOptions(batch=2))
    await committed(journal, 4)
    with pytest.raises(ZeroDivisionError):
        await projection.catch_up()
    assert await seen(projection) == [1, 2]

    healthy = True
    await projection.catch_up()

    assert await seen(projection) == [1, 2, 3, 4]


async def test_running_projection_keeps_up(store: EngineStore) -> None:
    options = JournalOptions(poll_interval=timedelta(milliseconds=20))
    journal, other = Journal(store, "tests", options=options), Journal(store, "tests")
    done = asyncio.Event()

    async def watch(item: FeedItem, output: Output) -> None:
        await tally(item, output)
        if item.position == 12:
            done.set()

    projection = Projection(journal, "tally", watch)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(projection.run())
        await committed(other, 12)
        await done.wait()
        while await projection.position() < 12:  # noqa: ASYNC110  it is in the database
            await asyncio.sleep(0)
        running.cancel()

    assert await seen(projection) == list(range(1, 13))
    assert len(journal.notifier) == 0


async def test_running_projection_waits_for_its_store(store: EngineStore, clock: FakeClock) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests", clock=clock)
    await committed(Journal(store, "tests"), 2)
    failures = 0

    async def fail(call: Call) -> None:
        nonlocal failures
        if call.method == "get" and failures < 3:
            failures += 1
            raise StoreUnavailableError("the line went dead")

    faulty.before = fail
    projection = Projection(journal, "tally", tally)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(projection.run())
        while await Projection(Journal(store, "tests"), "tally", tally).position() < 2:
            await clock.skip(timedelta(seconds=1))
        running.cancel()

    assert failures == 3
    assert await seen(projection) == [1, 2]


async def test_running_projection_ends_with_a_store_that_will_not_come_back(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    await committed(journal, 2)

    async def fail(call: Call) -> None:
        if call.write:
            raise StoreBrokenError("a commit died")

    faulty.before = fail
    async with asyncio.timeout(60):
        with pytest.raises(StoreBrokenError):
            await Projection(journal, "tally", tally).run()


async def test_projections_of_namespaces_with_any_names_do_not_meet(store: EngineStore) -> None:
    one, two = Journal(store, "a/b"), Journal(store, "a")
    await committed(one, 3)
    projection = Projection(one, "c", tally)
    await projection.catch_up()

    assert await seen(Projection(two, "b/c", tally)) == []
    assert await seen(Projection(one, "c", tally)) == [1, 2, 3]


async def test_reset_begins_again(journal: Journal) -> None:
    projection = Projection(journal, "tally", tally)
    await committed(journal, 4)
    await projection.catch_up()

    await projection.reset()

    assert await projection.position() == 0
    assert await seen(projection) == []
    assert await projection.catch_up() == 4
    assert await seen(projection) == [1, 2, 3, 4]


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("write", [1, 2, 3])
async def test_interrupted_reset_goes_on(store: EngineStore, write: int, *, carried_out: bool) -> None:
    journal = Journal(store, "tests")
    projection = Projection(journal, "tally", tally)
    await committed(journal, 4)
    await projection.catch_up()
    faulty = FaultyStore(store)
    faulty.cut_off_at(write, carried_out=carried_out)
    with pytest.raises(CutOffError):
        await Projection(Journal(faulty, "tests"), "tally", tally).reset()

    assert await projection.catch_up() == 4

    assert await seen(projection) == [1, 2, 3, 4]


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("write", [1, 2, 3])
async def test_reset_goes_on_after_an_unknown_outcome(
    store: EngineStore, write: int, *, carried_out: bool
) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    projection = Projection(journal, "tally", tally)
    await committed(journal, 4)
    await projection.catch_up()
    first = faulty.writes

    async def lose(call: Call) -> None:
        if call.write == first + write:
            raise CommitOutcomeUnknownError("the line went dead")

    setattr(faulty, "after" if carried_out else "before", lose)
    await projection.reset()

    assert await seen(projection) == []
    assert await projection.catch_up() == 4
    assert await seen(projection) == [1, 2, 3, 4]


async def test_output_can_be_in_another_store(journal: Journal) -> None:
    await committed(journal, 3)
    async with connect("memory://") as elsewhere:
        projection = Projection(journal, "tally", tally, store=elsewhere)
        await projection.catch_up()

        assert await seen(projection) == [1, 2, 3]

    assert await seen(Projection(journal, "tally", tally)) == []


async def test_handler_sees_what_it_has_written(journal: Journal) -> None:
    async def handler(item: FeedItem, output: Output) -> None:
        output.set("b", b"old")
        output.set("c", b"")
        output.set("b", b"new")
        output.set(f"a{item.position}", b"")
        output.delete("c")
        views.append([pair async for pair in output.scan()])
        assert await output.get("b") == b"new"
        assert await output.get("c") is None

    views: list[list[tuple[str, bytes]]] = []
    projection = Projection(journal, "views", handler)
    await committed(journal, 1)
    await projection.catch_up()
    await committed(journal, 2)
    await projection.catch_up()

    assert views[-1] == [("a1", b""), ("a2", b""), ("a3", b""), ("b", b"new")]
    assert [pair async for pair in projection.output().scan()] == views[-1]
    assert [pair async for pair in projection.output().scan("a")] == views[-1][:3]


async def test_deletions_reach_a_projection(journal: Journal) -> None:
    kinds: list[FeedKind] = []

    async def note(item: FeedItem, _: Output) -> None:
        kinds.append(item.kind)

    projection = Projection(journal, "kinds", note)
    await committed(journal, 1)
    await projection.catch_up()
    await journal.delete(HISTORY, NO_VC)
    await projection.catch_up()

    assert kinds == [FeedKind.EVENT, FeedKind.DELETED]


async def test_batch_that_does_not_fit_is_made_smaller(journal: Journal) -> None:
    rows_an_item = journal.store.limits.operations // 3

    async def write_much(item: FeedItem, output: Output) -> None:
        for number in range(rows_an_item):
            output.set(f"{item.position}/{number}", b"")

    projection = Projection(journal, "much", write_much)
    await committed(journal, 5)

    assert await projection.catch_up() == 5

    rows_an_item = journal.store.limits.operations
    await committed(journal, 1)
    with pytest.raises(TransactionTooLargeError):
        await projection.catch_up()
    assert await projection.position() == 5


async def test_feed_that_has_lost_its_end_is_told_before_its_positions_come_again(store: EngineStore) -> None:
    async with connect("memory://") as lost, connect("memory://") as elsewhere:
        before, restored = Journal(lost, "tests"), Journal(store, "tests")
        await committed(before, 5)
        await Projection(before, "tally", tally, store=elsewhere).catch_up()
        await committed(restored, 3)
        projection = Projection(restored, "tally", tally, store=elsewhere)

        with pytest.raises(StoreCorruptError, match="position 5 of a feed that ends at 3"):
            await projection.catch_up()
        await projection.reset()
        assert await projection.catch_up() == 3


async def test_lag_is_observed(store: EngineStore) -> None:
    lags: list[tuple[str, int]] = []

    class Observer(JournalObserver):
        def lagged(self, name: str, positions: int) -> None:
            lags.append((name, positions))

    journal = Journal(store, "tests", observer=Observer())
    await committed(journal, 5)
    await Projection(journal, "tally", tally, options=ProjectionOptions(batch=2)).catch_up()

    assert lags == [("tally", 3), ("tally", 1), ("tally", 0)]


@pytest.mark.parametrize(("name", "batch"), [("", 1), ("tally", 0)])
def test_projection_without_name_or_batch_is_refused(name: str, batch: int) -> None:
    with pytest.raises(InvalidRequestError):
        Projection(Journal(MemoryStore(), "tests"), name, tally, options=ProjectionOptions(batch=batch))
