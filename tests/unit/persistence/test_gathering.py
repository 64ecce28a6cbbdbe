from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from persistence import (
    GetResponse,
    InvalidRequestError,
    StoreClosedError,
    StoreCorruptError,
    StoreUnavailableError,
)
from persistence.decision import Slot
from persistence.gathering import Gatherer, Rows


class Database:
    """Answers a query when it is told to; every key is there but those that begin with "absent"."""

    def __init__(self) -> None:
        self.queries: list[list[str]] = []
        self._answers: list[asyncio.Future[BaseException | None]] = []

    async def read(self, slots: Sequence[Slot]) -> Mapping[Slot, GetResponse]:
        self.queries.append([key for _, key in slots])
        answer = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        error = await answer
        if error is not None:
            raise error
        return {slot: GetResponse(slot[1].encode()) for slot in slots if not slot[1].startswith("absent")}

    def answer(self, error: BaseException | None = None) -> None:
        """Answer the oldest query that waits."""
        self._answers.pop(0).set_result(error)

    @property
    def waiting(self) -> int:
        return len(self._answers)


def ask(gatherer: Gatherer, *keys: str) -> list[asyncio.Task[GetResponse]]:
    return [asyncio.create_task(gatherer.get(("", key))) for key in keys]


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_reads_of_one_turn_share_a_query() -> None:
    database = Database()
    reads = ask(Gatherer(database.read), "a", "b", "absent")
    await turns()
    database.answer()
    assert [(await read).data for read in reads] == [b"a", b"b", None]
    assert database.queries == [["a", "b", "absent"]]


async def test_readers_of_one_row_share_it() -> None:
    database = Database()
    reads = ask(Gatherer(database.read), "a", "a")
    await turns()
    database.answer()
    assert [(await read).data for read in reads] == [b"a", b"a"]
    assert database.queries == [["a"]]


async def test_a_read_never_joins_a_query_that_has_begun() -> None:
    database = Database()
    gatherer = Gatherer(database.read)
    reads = ask(gatherer, "a")
    await turns()
    reads += ask(gatherer, "a")
    await turns()
    assert database.queries == [["a"], ["a"]]
    database.answer()
    database.answer()
    await asyncio.gather(*reads)


async def test_only_so_many_queries_run_at_a_time_and_the_others_are_gathered() -> None:
    database = Database()
    gatherer = Gatherer(database.read, parallel=2)
    reads: list[asyncio.Task[GetResponse]] = []
    for key in "abcdef":
        reads += ask(gatherer, key)
        await turns()
    assert database.queries == [["a"], ["b"]]
    database.answer()
    await turns()
    assert database.queries == [["a"], ["b"], ["c", "d", "e", "f"]]
    database.answer()
    database.answer()
    assert [(await read).data for read in reads] == [key.encode() for key in "abcdef"]


async def test_many_reads_take_several_queries() -> None:
    database = Database()
    reads = ask(Gatherer(database.read), *map(str, range(2500)))
    while not all(read.done() for read in reads):
        await turns()
        while database.waiting:
            database.answer()
    assert [read.result().data for read in reads] == [str(number).encode() for number in range(2500)]
    assert [len(query) for query in database.queries] == [1000, 1000, 500]


async def test_a_query_that_fails_fails_its_readers_and_nobody_else() -> None:
    database = Database()
    gatherer = Gatherer(database.read)
    cause = OSError("connection reset")
    error = StoreUnavailableError("no answer")
    error.__cause__ = cause
    failing = ask(gatherer, "a", "b")
    await turns()
    database.answer(error)
    outcomes = await asyncio.gather(*failing, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no answer"] * 2
    assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
    assert all(isinstance(outcome, Exception) and outcome.__cause__ is cause for outcome in outcomes)
    assert outcomes[0] is not outcomes[1]
    (later,) = ask(gatherer, "a")
    await turns()
    database.answer()
    assert (await later).data == b"a"


async def test_a_row_that_cannot_be_read_fails_its_readers_and_nobody_else() -> None:
    async def read(slots: Sequence[Slot]) -> Rows:
        return {("", "bad"): StoreCorruptError("no row of ours"), ("", "a"): GetResponse(b"a")}

    outcomes = await asyncio.gather(*ask(Gatherer(read), "a", "bad", "bad", "c"), return_exceptions=True)
    assert [outcome.data for outcome in outcomes if isinstance(outcome, GetResponse)] == [b"a", None]
    failures = [outcome for outcome in outcomes if isinstance(outcome, StoreCorruptError)]
    assert [str(failure) for failure in failures] == ["no row of ours"] * 2


async def test_readers_of_a_query_that_was_cancelled_before_it_began_are_not_left_waiting() -> None:
    gatherer = Gatherer(Database().read)
    (reader,) = ask(gatherer, "a")
    await asyncio.sleep(0)
    before = asyncio.all_tasks()
    await asyncio.sleep(0)
    (query,) = asyncio.all_tasks() - before
    query.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await gatherer.drain()


async def test_an_unforeseen_failure_reaches_the_readers() -> None:
    database = Database()
    (read,) = ask(Gatherer(database.read), "a")
    await turns()
    database.answer(ZeroDivisionError("of the driver"))
    with pytest.raises(ZeroDivisionError):
        await read


async def test_a_reader_that_goes_away_takes_nothing_from_the_others() -> None:
    database = Database()
    gone, left = ask(Gatherer(database.read), "a", "a")
    await turns()
    gone.cancel()
    await turns()
    database.answer()
    assert (await left).data == b"a"
    assert gone.cancelled()


@pytest.mark.parametrize("error", [None, InvalidRequestError("no")])
async def test_readers_that_have_all_gone_leave_no_unseen_error(error: Exception | None) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    database = Database()
    gatherer = Gatherer(database.read)
    reads = ask(gatherer, "a", "b")
    await turns()
    for read in reads:
        read.cancel()
    database.answer(error)
    await asyncio.gather(*reads, return_exceptions=True)
    await gatherer.drain()
    assert complaints == []


async def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    database = Database()
    gatherer = Gatherer(database.read, parallel=1)
    reads = ask(gatherer, "a")
    await turns()
    reads += ask(gatherer, "b")
    await turns()
    draining = asyncio.create_task(gatherer.drain())
    await turns()
    with pytest.raises(StoreClosedError):
        await gatherer.get(("", "c"))
    database.answer()
    await turns()
    assert not draining.done()
    database.answer()
    await draining
    assert [(await read).data for read in reads] == [b"a", b"b"]


async def test_draining_an_idle_gatherer_takes_no_query() -> None:
    database = Database()
    gatherer = Gatherer(database.read)
    await gatherer.drain()
    await gatherer.drain()
    assert database.queries == []


async def test_a_read_that_was_asked_for_in_this_turn_is_drained() -> None:
    database = Database()
    gatherer = Gatherer(database.read)
    (read,) = ask(gatherer, "a")
    await asyncio.sleep(0)
    draining = asyncio.create_task(gatherer.drain())
    await turns()
    database.answer()
    await draining
    assert (await read).data == b"a"


def test_a_program_that_ends_is_not_held_up() -> None:
    async def program() -> None:
        gatherer = Gatherer(Database().read, parallel=1)
        reads = ask(gatherer, "a")
        await turns()
        reads += ask(gatherer, "b")
        await turns()
        assert not any(read.done() for read in reads)

    asyncio.run(program())


async def test_many_rows_for_one_reader_take_queries_of_their_own() -> None:
    database = Database()
    gatherer = Gatherer(database.read)
    (single,) = ask(gatherer, "single")
    slots = [("", "absent"), *(("", f"k{number}") for number in range(1500)), ("", "k1")]
    read = asyncio.create_task(gatherer.get_all(slots))
    await turns()
    assert [len(query) for query in database.queries] == [1000, 1]
    database.answer()
    database.answer()
    await turns()
    assert len(database.queries[2]) == 502
    database.answer()

    rows = await read
    assert (await single).data == b"single"
    assert len(rows) == 1500
    assert rows.keys() == {slot for slot in slots if slot[1] != "absent"}


async def test_many_rows_fail_with_their_query() -> None:
    database = Database()
    read = asyncio.create_task(Gatherer(database.read).get_all([("", "a"), ("", "b")]))
    await turns()
    database.answer(StoreUnavailableError("down"))

    with pytest.raises(StoreUnavailableError, match="down"):
        await read


async def test_draining_waits_for_many_rows_also_if_their_reader_has_gone() -> None:
    database = Database()
    gatherer = Gatherer(database.read)
    read = asyncio.create_task(gatherer.get_all([("", "a")]))
    await turns()
    read.cancel()
    drain = asyncio.create_task(gatherer.drain())
    await turns()
    assert not drain.done()
    database.answer(StoreUnavailableError("down"))
    await drain

    with pytest.raises(StoreClosedError):
        await gatherer.get_all([("", "a")])
