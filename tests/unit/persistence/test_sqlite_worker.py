from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from persistence.stores.sqlite.worker import Worker


async def test_work_is_done_in_order_in_one_thread() -> None:
    worker = Worker("test")
    done: list[int] = []
    threads: set[int] = set()

    def work(number: int) -> int:
        done.append(number)
        threads.add(threading.get_ident())
        return -number

    futures = [worker.run(lambda number=number: work(number)) for number in range(10)]  # type: ignore[misc]
    assert await asyncio.gather(*futures) == [-number for number in range(10)]
    await worker.stop()
    assert done == list(range(10))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


@pytest.mark.parametrize("death", [RuntimeError("bug"), SystemExit(1), StopIteration()])
async def test_whatever_work_dies_of_reaches_the_caller_and_the_thread_goes_on(death: BaseException) -> None:
    worker = Worker("test")
    outcomes: asyncio.Queue[object] = asyncio.Queue()

    def die() -> None:
        raise death

    worker.call(die, outcomes.put_nowait)
    assert await outcomes.get() is death
    assert await worker.run(lambda: "alive") == "alive"
    await worker.stop()


async def test_a_chore_is_done_after_the_news_is_out_and_keeps_the_thread_from_being_idle() -> None:
    worker = Worker("test")
    news: asyncio.Queue[object] = asyncio.Queue()
    begun, go_on = threading.Event(), threading.Event()

    def chore() -> None:
        begun.set()
        go_on.wait()

    worker.call(lambda: "done", news.put_nowait, chore=lambda: chore)
    assert await news.get() == "done"
    idle = [worker.idle]
    go_on.set()
    assert await worker.run(lambda: "next") == "next"
    idle.append(worker.idle)
    assert idle == [False, True]
    assert begun.is_set()
    await worker.stop()


async def test_without_a_chore_the_thread_is_idle_when_the_news_is_out() -> None:
    worker = Worker("test")
    idle: asyncio.Queue[bool] = asyncio.Queue()
    worker.call(lambda: None, lambda _: idle.put_nowait(worker.idle), chore=lambda: None)
    assert await idle.get()
    await worker.stop()


async def test_a_cancelled_caller_does_not_disturb() -> None:
    worker = Worker("test")
    go_on = threading.Event()
    gone = worker.run(go_on.wait)
    gone.cancel()
    go_on.set()
    assert await worker.run(lambda: "alive") == "alive"
    await worker.stop()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[float]:
    """Naps as they are taken, instead of sleeping."""
    taken: asyncio.Queue[float] = asyncio.Queue()
    monkeypatch.setattr("persistence.stores.sqlite.worker.time.sleep", taken.put_nowait)
    return taken


async def take(naps: asyncio.Queue[float], count: int) -> None:
    for _ in range(count):
        await naps.get()


async def test_the_watchdog_naps_while_work_is_late_and_stops_when_it_is_done(
    naps: asyncio.Queue[float],
) -> None:
    worker = Worker("test")
    for _ in range(2):  # and again after a rest
        go_on = threading.Event()
        late = worker.run(go_on.wait)
        await take(naps, 3)
        go_on.set()
        await late
        while not naps.empty():
            naps.get_nowait()
        await asyncio.sleep(0.02)
        assert naps.empty()
    await worker.stop()


async def test_naps_get_rarer_when_they_do_not_help(
    naps: asyncio.Queue[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker("test")
    loop = asyncio.get_running_loop()
    pauses: list[float] = []
    call_soon = loop.call_soon

    def skip_the_pause(delay: float, look: Callable[[], object]) -> asyncio.Handle:
        pauses.append(delay)
        return call_soon(look)

    go_on = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_later", skip_the_pause)
        late = worker.run(go_on.wait)
        await take(naps, 200)
    go_on.set()
    await late
    _, first, *others = pauses
    assert set(others[:90]) == {first}
    assert others == sorted(others)
    assert others[-1] > first
    await worker.stop()
