from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from persistence import (
    CommitOutcomeUnknownError,
    ETagMismatchError,
    InvalidRequestError,
    StoreBrokenError,
    StoreBusyError,
    StoreClosedError,
    StoreCorruptError,
    StoreUnavailableError,
)
from persistence.batcher import Batcher, DataRejectedError, Finish, Result, in_task
from persistence.decision import Transaction


def transaction(name: str, size: int = 1, partition: str = "") -> Transaction:
    return Transaction(partition, (), (((partition, name), b"", None, None),), size)


def names(batch: Sequence[Transaction]) -> list[str]:
    return [each.writes[0][0][1] for each in batch]


class Backend:
    """Commits when it is told to, as it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._finish: Finish | None = None
        self.answer: Callable[[Sequence[Transaction]], Sequence[Result] | BaseException] | None = None

    def begin(self, batch: Sequence[Transaction], finish: Finish) -> None:
        self.batches.append(names(batch))
        if self.answer is not None:
            finish(self.answer(batch))
        else:
            self._finish = finish

    def end(self, outcome: Sequence[Result] | BaseException) -> None:
        assert self._finish is not None, "no commit is under way"
        finish, self._finish = self._finish, None
        finish(outcome)


def all_well(batch: Sequence[Transaction]) -> list[Result]:
    return [f"etag of {name}" for name in names(batch)]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_transactions_of_one_turn_share_a_commit() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    backend.answer = all_well
    futures = [lane.submit(transaction(name)) for name in "abc"]
    assert await asyncio.gather(*futures) == ["etag of a", "etag of b", "etag of c"]
    assert backend.batches == [["a", "b", "c"]]


async def test_what_comes_during_a_commit_is_the_next_batch() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    first = lane.submit(transaction("a"))
    await turns()
    second = [lane.submit(transaction(name)) for name in "bc"]
    await turns()
    assert backend.batches == [["a"]]
    backend.end([""])
    await first
    await turns()
    assert backend.batches == [["a"], ["b", "c"]]
    backend.end(["", ""])
    await asyncio.gather(*second)


async def test_callers_that_go_on_at_once_join_the_next_batch() -> None:
    backend = Backend()
    backend.answer = all_well
    lane = Batcher(backend.begin)

    async def caller(name: str) -> None:
        for turn in range(3):
            await lane.submit(transaction(f"{name}{turn}"))

    await asyncio.gather(caller("a"), caller("b"))
    assert backend.batches == [["a0", "b0"], ["a1", "b1"], ["a2", "b2"]]


async def test_each_fails_alone() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    good, bad = lane.submit(transaction("good")), lane.submit(transaction("bad"))
    await turns()
    backend.end(["etag", ETagMismatchError("stale", partition="p", key="k")])
    assert await good == "etag"
    with pytest.raises(ETagMismatchError, match="stale") as refused:
        await bad
    assert (refused.value.partition, refused.value.key) == ("p", "k")


async def test_a_cancelled_caller_does_not_disturb_and_its_transaction_is_committed() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    gone, stays = lane.submit(transaction("gone")), lane.submit(transaction("stays"))
    gone.cancel()
    await turns()
    assert backend.batches == [["gone", "stays"]]
    backend.end(["1", "2"])
    assert await stays == "2"
    assert gone.cancelled()


async def test_a_caller_cancelled_during_the_commit_does_not_disturb() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    gone, stays = lane.submit(transaction("gone")), lane.submit(transaction("stays"))
    await turns()
    gone.cancel()
    backend.end([ETagMismatchError("stale"), "2"])
    assert await stays == "2"


async def test_a_failed_commit_fails_the_whole_batch_and_the_lane_goes_on() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    futures = [lane.submit(transaction(name)) for name in "ab"]
    await turns()
    backend.end(StoreBusyError("locked"))
    errors = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(error) for error in errors] == [StoreBusyError, StoreBusyError]
    assert errors[0] is not errors[1]
    backend.answer = all_well
    assert await lane.submit(transaction("c")) == "etag of c"


@pytest.mark.parametrize("death", [RuntimeError("bug"), SystemExit(), MemoryError()])
async def test_an_unforeseen_death_fails_everything_and_stops_the_lane(death: BaseException) -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    dying = [lane.submit(transaction(name)) for name in "ab"]
    await turns()
    waiting = lane.submit(transaction("c"))
    backend.end(death)
    for future in dying:
        with pytest.raises(CommitOutcomeUnknownError) as unknown:
            await future
        assert unknown.value.__cause__ is death
    with pytest.raises(StoreBrokenError):
        await waiting
    with pytest.raises(StoreBrokenError) as broken:
        await lane.submit(transaction("d"))
    assert broken.value.__cause__ is death
    await lane.drain()


async def test_a_damaged_database_stops_the_lane() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    future = lane.submit(transaction("a"))
    await turns()
    backend.end(StoreCorruptError("damaged"))
    with pytest.raises(StoreCorruptError):
        await future
    with pytest.raises(StoreBrokenError, match="damaged"):
        await lane.submit(transaction("b"))


async def test_a_commit_that_cannot_begin_is_one_that_died() -> None:
    def begin(batch: Sequence[Transaction], finish: Finish) -> None:
        raise RuntimeError("no thread")

    lane = Batcher(begin)
    with pytest.raises(CommitOutcomeUnknownError, match="no thread"):
        await lane.submit(transaction("a"))
    with pytest.raises(StoreBrokenError):
        await lane.submit(transaction("b"))


async def test_results_that_do_not_match_the_batch_are_a_death() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    future = lane.submit(transaction("a"))
    await turns()
    backend.end(["", ""])
    with pytest.raises(CommitOutcomeUnknownError):
        await future


async def test_a_rejected_value_is_found_by_replaying_one_by_one() -> None:
    def answer(batch: Sequence[Transaction]) -> Sequence[Result] | BaseException:
        if "bad" in names(batch):
            return DataRejectedError(InvalidRequestError("too big"))
        return all_well(batch)

    backend = Backend()
    backend.answer = answer
    lane = Batcher(backend.begin)
    futures = [lane.submit(transaction(name)) for name in ("a", "bad", "c")]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert outcomes[0] == "etag of a"
    assert isinstance(outcomes[1], InvalidRequestError)
    assert outcomes[2] == "etag of c"
    assert backend.batches == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
    assert await lane.submit(transaction("d")) == "etag of d"


async def test_a_batch_is_bounded_in_number_and_bytes() -> None:
    backend = Backend()
    backend.answer = all_well
    lane = Batcher(backend.begin, max_transactions=3, max_bytes=100)
    sizes = [60, 60, 30, 5, 5, 500, 1, 1, 1, 1]
    await asyncio.gather(*(lane.submit(transaction(str(n), size)) for n, size in enumerate(sizes)))
    assert backend.batches == [["0"], ["1", "2", "3"], ["4"], ["5"], ["6", "7", "8"], ["9"]]


async def test_a_batch_is_bounded_in_partitions() -> None:
    backend = Backend()
    backend.answer = all_well
    lane = Batcher(backend.begin, max_partitions=2)
    submitted = [transaction(f"{n}", partition=name) for n, name in enumerate("aabbabcaddd")]
    await asyncio.gather(*(lane.submit(each) for each in submitted))
    assert ["".join(batch) for batch in backend.batches] == ["012345", "67", "8910"]


GONE = StoreUnavailableError("nobody answers")
LOST = CommitOutcomeUnknownError("the answer is lost")


@pytest.mark.parametrize("outcome", [GONE, LOST, [GONE, LOST]], ids=["gone", "lost", "each"])
async def test_who_waited_when_an_unanswered_commit_began_waits_for_no_other(
    outcome: Sequence[Result] | BaseException,
) -> None:
    backend = Backend()
    lane = Batcher(backend.begin, max_transactions=2)
    early = [lane.submit(transaction(str(number))) for number in range(7)]
    await turns()
    late = [lane.submit(transaction(name)) for name in ("late", "later")]
    backend.end(outcome)
    await turns()
    assert backend.batches == [["0", "1"], ["late", "later"]]
    for future in early[2:]:
        with pytest.raises(StoreUnavailableError, match=r"nobody answers|nothing was sent"):
            await future
    backend.end(["", ""])
    assert await asyncio.gather(*late) == ["", ""]
    with pytest.raises((StoreUnavailableError, CommitOutcomeUnknownError)):
        await early[0]
    # What was given up is not counted any more.
    small = Batcher(backend.begin, max_transactions=1, max_bytes=10)
    given_up = [small.submit(transaction(str(number), size=10)) for number in range(3)]
    await turns()
    backend.end(GONE)
    await asyncio.gather(*given_up, return_exceptions=True)
    assert small._pending_bytes == 0


@pytest.mark.parametrize(
    "outcome",
    [StoreBusyError("locked"), [GONE, ""], [GONE, StoreBusyError("locked")], InvalidRequestError("no")],
    ids=["busy", "one well", "one busy", "refused"],
)
async def test_who_waits_for_a_database_that_answers_goes_on_waiting(
    outcome: Sequence[Result] | BaseException,
) -> None:
    backend = Backend()
    lane = Batcher(backend.begin, max_transactions=2)
    futures = [lane.submit(transaction(str(number))) for number in range(4)]
    await turns()
    backend.end(outcome)
    await turns()
    assert backend.batches == [["0", "1"], ["2", "3"]]
    backend.end(["", ""])
    assert await asyncio.gather(*futures[2:]) == ["", ""]
    await asyncio.gather(*futures[:2], return_exceptions=True)


async def test_draining_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    first = lane.submit(transaction("a"))
    await turns()
    second = lane.submit(transaction("b"))
    draining = [asyncio.create_task(lane.drain()) for _ in range(2)]
    await turns()
    with pytest.raises(StoreClosedError):
        await lane.submit(transaction("c"))
    backend.end(["1"])
    await turns()
    assert not draining[0].done()
    backend.end(["2"])
    await asyncio.gather(*draining)
    assert [await first, await second] == ["1", "2"]
    await lane.drain()


async def test_a_cancelled_drain_can_be_repeated() -> None:
    backend = Backend()
    lane = Batcher(backend.begin)
    future = lane.submit(transaction("a"))
    draining = asyncio.create_task(lane.drain())
    await turns()
    draining.cancel()
    again = asyncio.create_task(lane.drain())
    await turns()
    backend.end([""])
    await again
    await future


async def test_a_coroutine_function_commits_in_tasks() -> None:
    async def commit(batch: Sequence[Transaction]) -> Sequence[Result]:
        await asyncio.sleep(0)
        if "dead" in names(batch):
            raise StoreBusyError("locked")
        return all_well(batch)

    lane = Batcher(in_task(commit))
    assert await lane.submit(transaction("a")) == "etag of a"
    with pytest.raises(StoreBusyError):
        await lane.submit(transaction("dead"))
    assert await lane.submit(transaction("b")) == "etag of b"


async def test_cancelling_every_task_leaves_the_outcome_of_a_commit_unknown() -> None:
    under_way: asyncio.Task[object] | None = None

    async def commit(batch: Sequence[Transaction]) -> Sequence[Result]:
        nonlocal under_way
        if names(batch) == ["a"]:
            under_way = asyncio.current_task()
            await asyncio.Event().wait()
        return all_well(batch)

    lane = Batcher(in_task(commit))
    first = lane.submit(transaction("a"))
    await turns()
    second = lane.submit(transaction("b"))
    assert under_way is not None
    under_way.cancel()
    with pytest.raises(CommitOutcomeUnknownError):
        await first
    assert await second == "etag of b"


async def test_a_commit_that_is_cancelled_before_it_begins_leaves_nobody_waiting() -> None:
    async def commit(batch: Sequence[Transaction]) -> Sequence[Result]:
        return ["etag"] * len(batch)

    lane = Batcher(in_task(commit))
    waiting = lane.submit(transaction("a"))
    before = asyncio.all_tasks()
    await asyncio.sleep(0)
    (task,) = asyncio.all_tasks() - before
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(CommitOutcomeUnknownError):
            await waiting
        assert await lane.submit(transaction("b")) == "etag"
        await lane.drain()
