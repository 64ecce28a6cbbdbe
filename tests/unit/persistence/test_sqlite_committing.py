from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from persistence.batcher import Result
from persistence.decision import Transaction
from persistence.errors import StoreBusyError
from persistence.stores.sqlite.committing import Committer
from persistence.stores.sqlite.pace import Pace
from persistence.stores.sqlite.worker import Worker
from persistence.stores.sqlite.writing import Writer

QUICK, SLOW = 0.0009, 0.0011
LONE = [Transaction("partition", [], [], 10)]


class Disk:
    """A writer that knows in which thread it was called; its commits take what the test says."""

    def __init__(self) -> None:
        self.seconds = QUICK
        self.now = 0.0
        self.threads: list[int] = []
        self.others_write = False
        self.fails: BaseException | None = None
        self.checkpoint_is_due = False
        self.checkpoint_fails: BaseException | None = None
        self.checkpoints: asyncio.Queue[int] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def write_batch(
        self, batch: Sequence[Transaction], etags: Sequence[str], *, wait: bool = True
    ) -> Sequence[Result]:
        self.threads.append(threading.get_ident())
        if self.others_write and not wait:
            raise StoreBusyError("locked")
        if self.fails is not None:
            raise self.fails
        self.now += self.seconds
        assert len(etags) == len(batch)
        return list(etags)

    def due(self) -> Callable[[], None] | None:
        return self.checkpoint if self.checkpoint_is_due else None

    def checkpoint(self) -> None:
        self.checkpoint_is_due = False
        self.loop.call_soon_threadsafe(self.checkpoints.put_nowait, threading.get_ident())
        if self.checkpoint_fails is not None:
            raise self.checkpoint_fails


@pytest.fixture
async def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("persistence.stores.sqlite.committing.time.perf_counter", lambda: disk.now)
    return disk


@pytest.fixture
async def committer(disk: Disk) -> AsyncIterator[Committer]:
    thread = Worker("test")
    # It has what the committer asks of a writer.
    yield Committer(thread, cast("Writer", disk))
    await thread.stop()


async def commit(
    committer: Committer, batch: Sequence[Transaction] = LONE
) -> Sequence[Result] | BaseException:
    """The outcome, as the lane of commits gets it."""
    outcome: asyncio.Future[Sequence[Result] | BaseException] = asyncio.get_running_loop().create_future()
    committer.begin(batch, outcome.set_result)
    return await outcome


async def in_place(committer: Committer, disk: Disk, batch: Sequence[Transaction] = LONE) -> bool:
    """Whether a batch is carried out in the event loop's thread."""
    outcome = await commit(committer, batch)
    assert not isinstance(outcome, BaseException)
    assert len(outcome) == len(batch)
    return disk.threads[-1] == threading.get_ident()


async def warm_up(committer: Committer) -> None:
    for _ in range(20):
        await commit(committer)


async def test_lone_transaction_is_carried_out_in_place_once_commits_have_been_quick(
    committer: Committer, disk: Disk
) -> None:
    assert not await in_place(committer, disk)
    await warm_up(committer)
    assert await in_place(committer, disk)


async def test_slow_disk_is_waited_for_in_the_thread(committer: Committer, disk: Disk) -> None:
    disk.seconds = SLOW
    for _ in range(100):
        assert not await in_place(committer, disk)


async def test_one_slow_commit_is_enough_to_go_back_to_the_thread(committer: Committer, disk: Disk) -> None:
    await warm_up(committer)
    disk.seconds = SLOW
    assert await in_place(committer, disk)
    disk.seconds = QUICK
    assert not await in_place(committer, disk)


async def test_batch_of_several_goes_to_the_thread(committer: Committer, disk: Disk) -> None:
    await warm_up(committer)
    assert not await in_place(committer, disk, LONE * 2)


async def test_large_transaction_goes_to_the_thread(committer: Committer, disk: Disk) -> None:
    await warm_up(committer)
    assert not await in_place(committer, disk, [Transaction("partition", [], [], 1 << 20)])


async def test_others_who_write_are_waited_for_in_the_thread(committer: Committer, disk: Disk) -> None:
    await warm_up(committer)
    disk.others_write = True
    before = len(disk.threads)
    assert not await in_place(committer, disk)
    assert len(disk.threads) == before + 2


async def test_failure_in_place_is_an_outcome(committer: Committer, disk: Disk) -> None:
    await warm_up(committer)
    disk.fails = OSError("disk on fire")
    assert await commit(committer) is disk.fails


async def test_interruption_in_place_is_an_outcome_and_goes_on(committer: Committer, disk: Disk) -> None:
    await warm_up(committer)
    disk.fails = KeyboardInterrupt()
    outcomes: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        committer.begin(LONE, outcomes.append)
    assert outcomes == [disk.fails]


@pytest.mark.parametrize("warm", [False, True])
async def test_checkpoint_is_the_threads(committer: Committer, disk: Disk, warm: bool) -> None:
    if warm:
        await warm_up(committer)
    disk.checkpoint_is_due = True
    await commit(committer)
    assert await disk.checkpoints.get() != threading.get_ident()
    await commit(committer)  # behind the checkpoint, if the event loop has not heard of its end yet
    assert await in_place(committer, disk) == warm


async def test_checkpoint_that_fails_is_told_and_leaves_commits_alone(
    committer: Committer, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.checkpoint_is_due = True
    disk.checkpoint_fails = OSError("disk on fire")
    await commit(committer)
    await commit(committer)  # in the same thread, and so after the checkpoint
    assert "disk on fire" in caplog.text


def test_each_slow_commit_doubles_how_many_quick_ones_it_takes() -> None:
    pace = Pace()
    needed = []
    for _ in range(4):
        count = 0
        while not pace.quick:
            pace.took(QUICK)
            count += 1
        needed.append(count)
        pace.took(SLOW)
    assert needed == [16, 32, 64, 128]


def test_slow_commit_is_forgiven_after_many_quick_ones() -> None:
    pace = Pace()
    for seconds in [QUICK] * 16 + [SLOW] + [QUICK] * 32 * 8 + [SLOW]:
        pace.took(seconds)
    count = 0
    while not pace.quick:
        pace.took(QUICK)
        count += 1
    assert count == 32
