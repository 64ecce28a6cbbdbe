"""Commits to different histories that share a transaction: each succeeds or fails as it would alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

import attrs
import pytest

from hsm.testing import Call, CutOffError, FaultyStore
from persistence import CommitOutcomeUnknownError, TransactionTooLargeError
from persistence.journal import (
    EPOCH,
    NO_VC,
    RETRY_NO_VC,
    Committed,
    EventId,
    EventIdSource,
    Journal,
    JournalOptions,
    NewEvent,
    SystemClock,
    TranscodingError,
    VersionConflictError,
)
from persistence.store import CheckRequest, DeleteRequest, EngineStore, Limits, SetRequest
from tests.support.histories import codes, numbered, rows

Versions = dict[UUID, EventId]


def operations(call: Call) -> Sequence[SetRequest | DeleteRequest | CheckRequest]:
    """What a multi carries out; nothing for other calls."""
    return call.request if call.method == "multi" else ()  # type: ignore[return-value]  # a multi's


def is_shared(call: Call) -> bool:
    """Whether it is the transaction of several commits."""
    return sum(operation.key.startswith("h/") for operation in operations(call)) > 1


class Spy:
    """Counts transactions, and lets each take a turn of the event loop at least, as a server does."""

    def __init__(self, act: Callable[[Call], None] = lambda _: None) -> None:
        self.shared = 0
        self.largest = 0
        self._act = act

    async def __call__(self, call: Call) -> None:
        await asyncio.sleep(0)
        self.shared += is_shared(call)
        self.largest = max(self.largest, len(operations(call)))
        self._act(call)


async def begun(journal: Journal, number: int) -> Versions:
    """So many histories with an event each, whose heads the journal keeps."""
    return {
        history: (await journal.commit(history, numbered(0), EPOCH)).version
        for history in (uuid4() for _ in range(number))
    }


async def at_once(
    journal: Journal, versions: Versions, events: Sequence[NewEvent]
) -> list[Committed | BaseException]:
    """Commit to all of the histories at once."""
    return await asyncio.gather(
        *(journal.commit(history, events, version) for history, version in versions.items()),
        return_exceptions=True,
    )


async def in_feed(journal: Journal) -> list[tuple[UUID, EventId | None]]:
    """All of the feed, whose positions are checked."""
    found: list[tuple[UUID, EventId | None]] = []
    position = 0
    while items := await journal.feed.read(position):
        assert [item.position for item in items] == list(range(position + 1, position + 1 + len(items)))
        found += [(item.history, item.event_id) for item in items]
        position = items[-1].position
    return found


async def check_feed(journal: Journal, histories: Sequence[UUID]) -> None:
    """The feed has every event of the histories once, in their order, and nothing is left pending."""
    found = await in_feed(journal)
    for history in histories:
        assert [event_id for of, event_id in found if of == history] == [
            event.id async for event in journal.find(history)
        ]
    assert len(found) == len(set(found))
    assert {of for of, _ in found} <= set(histories)
    assert await rows(journal.store, journal, "o/") == []


async def test_commits_at_once_share_transactions_and_pending_rows(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 40)
    await journal.feed.last_position()
    faulty.before = Spy()
    writes = faulty.writes

    outcomes = await at_once(journal, versions, numbered(1))

    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert faulty.writes == writes + 2
    assert len(await rows(store, journal, "o/")) == 2
    for history in versions:
        assert await codes(journal, history) == [0, 1]
    await check_feed(journal, list(versions))


@pytest.mark.parametrize("pause", [0, 2])
async def test_rounds_of_commits_stay_together(store: EngineStore, pause: int) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 20)
    faulty.before = Spy()
    writes = faulty.writes

    async def client(history: UUID) -> None:
        for code in range(1, 6):
            versions[history] = (await journal.commit(history, numbered(code), versions[history])).version
            for _ in range(pause):
                await asyncio.sleep(0)

    await asyncio.gather(*map(client, versions))

    assert faulty.writes <= writes + 6
    await check_feed(journal, list(versions))


@pytest.mark.parametrize("expectation", ["version", "none"])
async def test_conflict_of_one_is_no_matter_to_the_others(store: EngineStore, expectation: str) -> None:
    faulty = FaultyStore(store)
    journal, other = Journal(faulty, "tests"), Journal(store, "tests")
    versions = await begun(journal, 10)
    victim = list(versions)[5]
    await other.commit(victim, numbered(99), NO_VC)
    faulty.before = spy = Spy()

    outcomes = await asyncio.gather(
        *(
            journal.commit(history, numbered(1), version if expectation == "version" else NO_VC)
            for history, version in versions.items()
        ),
        return_exceptions=True,
    )

    assert spy.shared == 1
    for history, outcome in zip(versions, outcomes, strict=True):
        if history != victim:
            assert isinstance(outcome, Committed)
            assert await codes(journal, history) == [0, 1]
        elif expectation == "version":
            assert isinstance(outcome, VersionConflictError)
            assert await codes(journal, history) == [0, 99]
        else:
            # The head was merely kept, and is read again.
            assert await codes(journal, history) == [0, 99, 1]
    await check_feed(journal, list(versions))


@pytest.mark.parametrize("carried_out", [True, False])
async def test_unknown_outcome_of_all_is_found_out_for_each(store: EngineStore, *, carried_out: bool) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 10)

    def lose(call: Call) -> None:
        if is_shared(call):
            raise CommitOutcomeUnknownError("the line went dead")

    faulty.before = Spy(lambda _: None if carried_out else lose(_))
    faulty.after = Spy(lambda _: lose(_) if carried_out else None)

    outcomes = await at_once(journal, versions, numbered(1, 2))
    faulty.before = faulty.after = None

    for history, outcome in zip(versions, outcomes, strict=True):
        assert isinstance(outcome, Committed)
        committed = await journal.commit(history, numbered(3), outcome.version)
        assert await codes(journal, history) == [0, 1, 2, 3]
        assert committed.events[0].parent == outcome.version
    await check_feed(journal, list(versions))


async def test_transaction_that_comes_through_late_is_no_second_commit(store: EngineStore) -> None:
    """The shared transaction is carried out behind the back of its commits, when some were repeated."""
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 6)
    late: list[Sequence[SetRequest | DeleteRequest | CheckRequest]] = []

    async def lose(call: Call) -> None:
        await asyncio.sleep(0)
        if is_shared(call):
            late.append(operations(call))
            raise CommitOutcomeUnknownError("the line went dead")
        if late and call.write % 2:
            try:
                await store.multi(late[0])
            except Exception:  # noqa: BLE001  as a rule it is refused
                return

    faulty.before = lose
    outcomes = await at_once(journal, versions, numbered(1))
    faulty.before = None

    assert len(late) == 1
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    for history in versions:
        assert await codes(journal, history) == [0, 1]
    await check_feed(journal, list(versions))


@pytest.mark.parametrize("carried_out", [True, False])
async def test_crash_at_the_shared_write_leaves_all_of_it_or_nothing(
    store: EngineStore, *, carried_out: bool
) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 10)
    faulty.before = Spy()
    # The first one goes alone, and the others meet behind it.
    faulty.cut_off_at(faulty.writes + 2, carried_out=carried_out)

    outcomes = await at_once(journal, versions, numbered(1))

    assert isinstance(outcomes[0], Committed)
    assert all(isinstance(outcome, CutOffError) for outcome in outcomes[1:])
    assert len(set(map(id, outcomes))) == len(outcomes)
    after = Journal(store, "tests")
    for history in list(versions)[1:]:
        assert await codes(after, history) == ([0, 1] if carried_out else [0])
    await check_feed(after, list(versions))


async def test_cancelled_callers_harm_nobody(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 12)
    faulty.before = Spy()
    tasks = [
        asyncio.ensure_future(journal.commit(history, numbered(1), version))
        for history, version in versions.items()
    ]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    for number, (history, outcome) in enumerate(zip(versions, outcomes, strict=True)):
        if number % 3:
            assert isinstance(outcome, Committed)
            assert await codes(journal, history) == [0, 1]
        else:
            assert isinstance(outcome, asyncio.CancelledError)
        await journal.commit(history, numbered(2), NO_VC)
    await check_feed(journal, list(versions))


@attrs.frozen
class Narrow:
    operations: int
    transaction_bytes: int = 1 << 20


class NarrowStore(FaultyStore):
    """A store whose transactions are small."""

    narrow = Narrow(10)

    @property
    def limits(self) -> Limits:
        return attrs.evolve(super().limits, **attrs.asdict(self.narrow))

    async def multi(self, operations: Sequence[SetRequest | DeleteRequest | CheckRequest]) -> str:
        if len(operations) > self.narrow.operations:
            raise TransactionTooLargeError("too many")
        return await super().multi(operations)


async def test_limits_of_the_store_bound_what_goes_together(store: EngineStore) -> None:
    narrow = NarrowStore(store)
    journal = Journal(narrow, "tests")
    versions = await begun(journal, 20)
    narrow.before = spy = Spy()
    culprit = uuid4()
    await journal.commit(culprit, numbered(0), EPOCH)

    others = asyncio.ensure_future(at_once(journal, versions, numbered(1, 2)))
    with pytest.raises(TransactionTooLargeError):
        await journal.commit(culprit, [NewEvent(b"")] * 9, NO_VC)

    assert all(isinstance(outcome, Committed) for outcome in await others)
    assert spy.shared >= 6
    assert spy.largest == 10
    await check_feed(journal, [*versions, culprit])


async def test_commits_to_one_history_conflict_beside_others_that_do_not(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 8)
    first, contested, *others = versions
    faulty.before, faulty.after = begun_, ended = Spy(), Spy()

    async def client(history: UUID) -> None:
        for code in range(1, 8):
            versions[history] = (await journal.commit(history, numbered(code), versions[history])).version

    # It goes alone, and all the others meet behind it.
    ahead = asyncio.ensure_future(journal.commit(first, numbered(1), versions[first]))
    rivals = [
        asyncio.ensure_future(journal.commit(contested, numbered(code), versions[contested]))
        for code in range(1, 6)
    ]
    await asyncio.gather(*map(client, others))
    outcomes = await asyncio.gather(*rivals, return_exceptions=True)
    await ahead

    assert [type(outcome) for outcome in outcomes] == [Committed] + [VersionConflictError] * 4
    assert await codes(journal, contested) == [0, 1]
    for history in others:
        assert await codes(journal, history) == list(range(8))
    # None of the rivals has made a shared transaction fail.
    assert begun_.shared == ended.shared >= 7
    await check_feed(journal, list(versions))


class Behind(SystemClock):
    """A clock that is half a minute behind."""

    def time_ns(self) -> int:
        return super().time_ns() - 30_000_000_000


async def test_stamp_that_commits_share_is_that_of_their_histories(store: EngineStore) -> None:
    """A process whose clock is behind goes on with histories whose ids say nothing of their stamps."""
    faulty = FaultyStore(store)
    journal, behind = Journal(faulty, "tests"), Journal(store, "tests", clock=Behind())
    versions = await begun(journal, 5)
    old = EventIdSource(lambda: time.time_ns() - 40_000_000_000)
    histories = [uuid4() for _ in range(5)]
    faulty.before = spy = Spy()

    await asyncio.gather(
        *(journal.commit(history, numbered(1), version) for history, version in versions.items()),
        *(journal.commit(history, [NewEvent(b"", old.new())], EPOCH) for history in histories),
    )
    for history in histories:
        # In between, it sees other histories, or it would know of the stamp by the way.
        await Journal(store, "tests", clock=Behind()).commit(history, numbered(2), NO_VC)
        await behind.commit(history, numbered(3), NO_VC)

    assert spy.shared
    await check_feed(journal, [*versions, *histories])


async def test_ids_from_the_far_future_stay_where_they_are(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests")
    versions = await begun(journal, 4)
    ahead, far = uuid4(), EventId(b"\x7f" + bytes(15))
    await journal.commit(ahead, [NewEvent(b"", far)], EPOCH)
    far = (await journal.commit(ahead, numbered(0), far)).version
    faulty.before = Spy()

    outcomes = await at_once(journal, {**versions, ahead: far}, numbered(1))
    later = await at_once(journal, dict.fromkeys(versions, EPOCH), numbered(2))

    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert all(isinstance(outcome, VersionConflictError) for outcome in later)
    for history in versions:
        assert (await journal.commit(history, numbered(2), NO_VC)).version < far
    await check_feed(journal, [*versions, ahead])


class Picky:
    """A codec that cannot encode everything."""

    name = "picky"

    def encode(self, data: bytes, context: bytes) -> bytes:
        if b"x" in data[: -36 - 16]:
            raise ValueError("not this")
        return data

    def decode(self, data: bytes, context: bytes) -> bytes:
        return data


async def test_event_that_cannot_be_encoded_fails_alone(store: EngineStore) -> None:
    faulty = FaultyStore(store)
    journal = Journal(faulty, "tests", options=JournalOptions(codec=Picky()))
    versions = await begun(journal, 6)
    faulty.before = Spy()
    bad = uuid4()

    others = asyncio.ensure_future(at_once(journal, versions, numbered(1)))
    with pytest.raises(TranscodingError):
        await journal.commit(bad, [NewEvent(b"\xda\x04\x40" + b"x" * 64)], NO_VC)

    assert all(isinstance(outcome, Committed) for outcome in await others)
    await check_feed(journal, list(versions))


async def test_journals_that_gather_for_the_same_histories_lose_nothing(store: EngineStore) -> None:
    journals = [Journal(store, "tests") for _ in range(3)]
    histories = [uuid4() for _ in range(6)]

    async def client(journal: Journal, number: int) -> None:
        for code in range(5):
            history = histories[(number + code) % len(histories)]
            await journal.commit(history, numbered(number * 100 + code), RETRY_NO_VC)

    await asyncio.gather(*(client(journal, number) for journal in journals for number in range(6)))

    found = [await codes(journals[0], history) for history in histories]
    assert sorted(code for each in found for code in each) == sorted(
        number * 100 + code for number in range(6) for code in range(5) for _ in journals
    )
    await check_feed(journals[0], histories)
