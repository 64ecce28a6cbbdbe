"""Several who tell one aggregate at once: in a process, in several, and with a store that leaves one in doubt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from hsm.aggregate import AggregateOptions, Engine
from hsm.testing import FakeClock, FaultyStore
from hsm.testing.faults import Call
from persistence.errors import CommitOutcomeUnknownError, TransactionTooLargeError
from persistence.journal import (
    NO_VC,
    RETRY_NO_VC,
    EventId,
    Expectation,
    Journal,
    RetryNoVCError,
    VersionConflictError,
)
from persistence.store import Operation
from tests.support.accounts import Account, AccountCommand, Accounts, Deposit, Fact, OverdrawnError, Withdraw
from tests.support.journals import World, before_writes

Accounting = Engine[Account, AccountCommand, Fact]


@pytest.fixture
def id_() -> UUID:
    return uuid4()


@pytest.fixture
def engine(world: World) -> Accounting:
    """An engine whose pauses do not grow, because nobody is there to make way for."""
    return Engine(world.journal(), Accounts(), AggregateOptions(pause_growth=1))


@pytest.fixture
def other(world: World) -> Accounting:
    return Engine(world.other_journal(), Accounts())


async def chain(world: World, id_: UUID) -> list[EventId]:
    """The ids of the events; reading them checks that each follows the one before."""
    return [event.id async for event in world.other_journal().find(id_)]


async def test_conflict_of_a_single_try_comes_out(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    first = await engine.tell_id_vid(id_, NO_VC, Deposit((1,)))
    for vid in (NO_VC, first):
        world.faulty.before = before_writes(lambda: other.tell_id_vid(id_, NO_VC, Deposit((2,))), times=1)
        with pytest.raises(VersionConflictError):
            await engine.tell_id_vid(id_, vid, Deposit((3,)))

    assert 3 not in (await engine.find_id(id_)).deposits


@pytest.mark.parametrize("conflicts", [1, 5])
async def test_retry_outlives_five_conflicts(
    engine: Accounting, other: Accounting, world: World, id_: UUID, conflicts: int
) -> None:
    world.faulty.before = before_writes(lambda: other.tell_id_vid(id_, NO_VC, Deposit((2,))), times=conflicts)

    state = await engine.tell_id_vid_state(id_, RETRY_NO_VC, Deposit((3,)))

    assert state.deposits == (2,) * conflicts + (3,)
    assert (engine.counts.conflicts, engine.counts.retries) == (conflicts, conflicts)


async def test_sixth_conflict_in_a_row_is_the_end(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    world.faulty.before = before_writes(lambda: other.tell_id_vid(id_, NO_VC, Deposit((2,))), times=100)

    with pytest.raises(RetryNoVCError) as caught:
        await engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((3,)))

    assert caught.value.tries == 6
    assert isinstance(caught.value.error, VersionConflictError)
    assert (await engine.find_id(id_)).deposits == (2,) * 6


async def test_any_error_of_the_sixth_try_is_wrapped_and_of_an_earlier_one_not(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    await other.tell_id_vid(id_, NO_VC, Deposit((6,)))
    for withdrawals, error in ((5, RetryNoVCError), (2, OverdrawnError)):
        amount = (await other.find_id(id_)).balance
        amounts = iter([*[0] * (withdrawals - 1), 1])

        async def withdraw(amounts: Iterator[int] = amounts) -> None:
            await other.tell_id_vid(id_, NO_VC, Withdraw(next(amounts)))

        world.faulty.before = before_writes(withdraw, times=withdrawals)
        with pytest.raises(error) as caught:
            await engine.tell_id_vid(id_, RETRY_NO_VC, Withdraw(amount))
        assert OverdrawnError in {type(caught.value), type(caught.value.__cause__)}


async def test_pauses_are_random_and_grow(world: World, other: Accounting, id_: UUID) -> None:
    longest: list[float] = []

    class Longest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            longest.append(b)
            return 0.0

    options = AggregateOptions(first_pause=timedelta(milliseconds=4), pause_growth=2, random=Longest())
    engine = Engine(world.journal(), Accounts(), options)
    world.faulty.before = before_writes(lambda: other.tell_id_vid(id_, NO_VC, Deposit((2,))), times=5)
    await engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((3,)))

    assert longest == [4e6 * 2**number for number in range(5)]


async def test_pause_can_be_cancelled(world: World, other: Accounting, id_: UUID) -> None:
    pausing = asyncio.Event()

    class Telling(random.Random):
        def uniform(self, a: float, b: float) -> float:
            pausing.set()
            return b

    engine = Engine(world.journal(), Accounts(), AggregateOptions(clock=FakeClock(), random=Telling()))
    world.faulty.before = before_writes(lambda: other.tell_id_vid(id_, NO_VC, Deposit((2,))), times=1)
    telling = asyncio.create_task(engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((3,))))
    await pausing.wait()
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling

    assert (await engine.find_id(id_)).deposits == (2,)


async def test_fifty_at_once_lose_nothing_and_share_commits(
    engine: Accounting, world: World, id_: UUID
) -> None:
    vids = await asyncio.gather(
        *[engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((number,))) for number in range(50)]
    )

    state = await engine.find_id(id_)
    assert sorted(state.deposits) == list(range(50))
    assert sorted(vids) == await chain(world, id_)
    assert engine.counts.commits < 10


async def test_fifty_at_once_from_each_of_four_end_in_one_chain(world: World, id_: UUID) -> None:
    engines = [Engine(world.other_journal(), Accounts()) for _ in range(4)]

    async def tell(engine: Accounting, number: int) -> EventId:
        return await engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((number,), f"{id(engine)}-{number}"))

    vids = await asyncio.gather(*[tell(engine, number) for engine in engines for number in range(50)])

    assert sorted(vids) == await chain(world, id_)
    assert len(set(vids)) == 200
    assert sorted((await engines[0].find_id(id_)).deposits) == sorted([*range(50)] * 4)


async def test_refused_command_among_others_fails_alone(engine: Accounting, id_: UUID) -> None:
    outcomes = await asyncio.gather(
        *[
            engine.tell_id_vid(id_, RETRY_NO_VC, command)
            for command in (Deposit((1,)), Withdraw(100), Deposit((2,)), Withdraw(3))
        ],
        return_exceptions=True,
    )

    assert [isinstance(outcome, OverdrawnError) for outcome in outcomes] == [False, True, False, False]
    assert (await engine.find_id(id_)).balance == 0


async def test_versions_among_others_are_compared_in_turn(engine: Accounting, id_: UUID) -> None:
    vid = await engine.tell_id_vid(id_, NO_VC, Deposit((1,)))
    vids: list[Expectation] = [RETRY_NO_VC, vid, NO_VC, RETRY_NO_VC]

    outcomes = await asyncio.gather(
        *[engine.tell_id_vid(id_, each, Deposit((2,))) for each in vids], return_exceptions=True
    )

    assert [isinstance(outcome, VersionConflictError) for outcome in outcomes] == [False, True, False, False]
    assert (await engine.find_id(id_)).deposits == (1, 2, 2, 2)


async def test_whoever_leaves_takes_nobody_along(engine: Accounting, world: World, id_: UUID) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hold(call: Call) -> None:
        if call.method == "multi":
            entered.set()
            await leave.wait()

    world.faulty.before = hold
    first = asyncio.create_task(engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((1,))))
    rest = [
        asyncio.create_task(engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((number,))))
        for number in range(2, 6)
    ]
    await entered.wait()
    first.cancel()
    rest[0].cancel()
    await asyncio.sleep(0)
    leave.set()
    await asyncio.gather(*rest[1:])
    outcomes = await asyncio.gather(first, rest[0], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    # Its commit was under way, and was waited for; the one that only waited has not taken place.
    assert (await engine.find_id(id_)).deposits == (1, 3, 4, 5)
    assert len(await chain(world, id_)) == 4


@pytest.mark.parametrize("vid", [NO_VC, RETRY_NO_VC])
@pytest.mark.parametrize("doubts", [1, 3, 7])
async def test_commit_in_doubt_takes_place_once(
    engine: Accounting, world: World, id_: UUID, vid: Expectation, doubts: int
) -> None:
    world.faulty.after = doubtful(doubts)

    state = await engine.tell_id_vid_state(id_, vid, Deposit((1, 2)))

    assert state.deposits == (1, 2)
    assert len(await chain(world, id_)) == 2
    assert (await Engine(world.other_journal(), Accounts()).find_id(id_)).deposits == (1, 2)


async def test_commit_in_doubt_that_others_have_built_upon_takes_place_once(
    engine: Accounting, other: Accounting, world: World, id_: UUID
) -> None:
    doubt = doubtful(1)

    async def doubt_and_build_upon(call: Call) -> None:
        if call.method == "multi":
            await other.tell_id_vid(id_, NO_VC, Deposit((9,)))
        await doubt(call)

    world.faulty.after = doubt_and_build_upon
    await engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((1,)))
    world.faulty.after = None

    assert (await engine.find_id(id_)).deposits == (1, 9)


async def test_facts_that_are_too_many_for_one_commit_are_spread_over_several(
    world: World, id_: UUID
) -> None:
    class Small(FaultyStore):
        """Takes few operations at once."""

        async def multi(self, operations: Sequence[Operation]) -> str:
            if len(operations) > 12:
                raise TransactionTooLargeError(f"{len(operations)} operations")
            return await super().multi(operations)

    engine = Engine(Journal(Small(world.store), world.namespace), Accounts())
    tellings = [engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((1,) * 4)) for _ in range(6)]
    await asyncio.gather(*tellings)
    with pytest.raises(TransactionTooLargeError):
        await engine.tell_id_vid(id_, RETRY_NO_VC, Deposit((1,) * 20))
    # The first goes alone; to halve the batch of the others takes as many turns as there are tries.
    hasty = Engine(Journal(Small(world.store), world.namespace), Accounts(), AggregateOptions(tries=2))
    tellings = [hasty.tell_id_vid(id_, RETRY_NO_VC, Deposit((1,) * 8)) for _ in range(5)]
    async with asyncio.timeout(60):
        await asyncio.gather(*tellings)

    assert (await engine.find_id(id_)).balance == 24 + 40
    assert len(await chain(world, id_)) == 24 + 40


def doubtful(times: int) -> Callable[[Call], Awaitable[None]]:
    """A hook that loses the answers to the next transactions."""
    left = times

    async def hook(call: Call) -> None:
        nonlocal left
        if call.method == "multi" and left:
            left -= 1
            raise CommitOutcomeUnknownError("the line broke")

    return hook
