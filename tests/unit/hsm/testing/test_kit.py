"""The test kit itself: a clock that stands still, an engine that is stepped, a store that fails on demand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from hsm import Ref
from hsm.testing import Call, CutOffError, FakeClock, FaultyStore, TestEngine
from persistence.store import DeleteRequest, EngineStore, GetRequest, SetRequest
from persistence.stores.memory import MemoryStore
from tests.support.jobs import Alarm, Ring, Soon, World, failing, job, log, started

SECOND = timedelta(seconds=1)


async def test_clock_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(datetime(2000, 1, 1, tzinfo=UTC))
    start = clock.now()
    assert clock.time_ns() == 946684800 * 10**9
    clock.advance(SECOND)
    assert clock.now() == start + SECOND
    clock.advance_to(start)
    assert clock.now() == start + SECOND
    assert "2000-01-01T00:00:01" in repr(clock)


async def test_clock_that_skips_comes_to_a_call_within_a_microsecond() -> None:
    clock, calls = FakeClock(), list[int]()
    clock.call_later(1500, lambda: calls.append(1))
    await clock.skip(SECOND)
    assert calls == [1]


async def test_clock_calls_in_order_at_the_time_of_each_call() -> None:
    clock = FakeClock()
    start, calls = clock.time_ns(), list[tuple[str, int]]()

    def at(seconds: int, name: str) -> None:
        clock.call_at(
            start + seconds * 10**9, lambda: calls.append((name, (clock.time_ns() - start) // 10**9))
        )

    for seconds, name in ((3, "c"), (1, "a"), (3, "d"), (2, "b"), (9, "late")):
        at(seconds, name)
    cancelled = clock.call_at(start + 1, lambda: calls.append(("cancelled", 0)))
    cancelled.cancel()
    assert clock.next_call() == clock.now() + SECOND
    clock.advance(5 * SECOND)
    assert calls == [("a", 1), ("b", 2), ("c", 3), ("d", 3)]
    clock.call_at(start, lambda: calls.append(("past", 0)))
    assert calls[-1][0] == "d"
    await asyncio.sleep(0)
    assert calls[-1][0] == "past"
    clock.advance(5 * SECOND)
    assert clock.next_call() is None


async def test_skip_lets_tasks_work_at_each_time_on_the_way() -> None:
    clock = FakeClock()
    start, wakes = clock.now(), list[timedelta]()

    async def tick() -> None:
        for _ in range(3):
            woken = asyncio.Event()
            clock.call_at(clock.time_ns() + 10**9, woken.set)
            await woken.wait()
            wakes.append(clock.now() - start)

    ticking = asyncio.create_task(tick())
    await clock.skip(10 * SECOND)
    assert wakes == [SECOND, 2 * SECOND, 3 * SECOND]
    assert clock.now() == start + 10 * SECOND
    await ticking


async def test_engine_goes_from_deadline_to_deadline() -> None:
    world = World()
    world.on(Soon, failing(OSError("x"), None))
    async with TestEngine(world.registry) as engine:
        start = engine.now()
        ref = await started(
            engine, "job", Alarm("a", start + SECOND * 90), Soon("b"), Ring("c", start + SECOND * 60)
        )
        assert await engine.skip_to_next() == engine.now() < start + SECOND * 2
        assert await engine.skip_to_next() == start + SECOND * 60
        assert await engine.read(ref, log) == ["b", "c"]
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["b", "c", "a"]
        assert await engine.skip_to_next() is None
        assert engine.now() == start + SECOND * 90


async def test_engine_that_never_comes_to_rest_is_told() -> None:
    world = World()
    world.on(Soon, failing(OSError("x")))
    async with TestEngine(world.registry) as engine:
        await started(engine, "job", Soon("b"))
        with pytest.raises(RuntimeError, match="still busy"):
            await engine.run_until_idle(steps=5)


async def test_engine_repeats_itself() -> None:
    async def story() -> list[object]:
        world = World()
        world.on(Soon, failing(OSError("x"), OSError("x"), None))
        async with TestEngine(world.registry) as engine:
            await started(engine, "job", Soon("b"))
            await engine.run_until_idle()
        return [(run.attempt, run.time) for run in world.runs]

    assert await story() == await story()


async def test_engine_restarts_on_the_same_store_and_clock() -> None:
    world, clock = World(), FakeClock()
    async with MemoryStore() as store:
        async with TestEngine(world.registry, store, clock=clock) as engine:
            await started(engine, "job", Alarm("a", clock.now() + SECOND))
        async with TestEngine(world.registry, store, clock=clock) as engine:
            await engine.run_until_idle()
            assert await engine.read(Ref(job()), log) == ["a"]


async def set_(store: EngineStore, key: str) -> None:
    await store.set(SetRequest(key=key, value=b"x"))


async def test_store_passes_on_and_counts() -> None:
    async with MemoryStore() as inner, FaultyStore(inner) as store:
        seen: list[Call] = []

        async def watch(call: Call) -> None:
            seen.append(call)

        store.before = watch
        await store.ping()
        await set_(store, "a")
        await store.multi([SetRequest(key="b", value=b"x"), DeleteRequest(key="a")])
        await store.bulk_set([SetRequest(key="c", value=b"x")])
        await store.bulk_delete([DeleteRequest(key="c")])
        await store.delete(DeleteRequest(key="nothing"))
        assert (await store.get(GetRequest(key="b"))).data == b"x"
        assert [found.data for found in await store.bulk_get([GetRequest(key="a")])] == [None]
        assert [item.key async for item in store.scan("", "", "")] == ["b"]
        assert store.features == inner.features
        assert store.limits == inner.limits
        assert (store.calls, store.writes) == (9, 5)
        assert [(call.number, call.write, call.method) for call in seen] == [
            (1, 0, "ping"),
            (2, 1, "set"),
            (3, 2, "multi"),
            (4, 3, "bulk_set"),
            (5, 4, "bulk_delete"),
            (6, 5, "delete"),
            (7, 0, "get"),
            (8, 0, "bulk_get"),
            (9, 0, "scan"),
        ]


@pytest.mark.parametrize("carried_out", [False, True])
async def test_store_is_cut_off_at_a_write(carried_out: bool) -> None:
    async with MemoryStore() as inner:
        store = FaultyStore(inner)
        store.cut_off_at(2, carried_out=carried_out)
        await set_(store, "a")
        with pytest.raises(CutOffError):
            await set_(store, "b")
        for refused in (store.ping(), set_(store, "c"), store.get(GetRequest(key="a"))):
            with pytest.raises(CutOffError, match="cut off"):
                await refused
        with pytest.raises(CutOffError):
            [item async for item in store.scan("", "", "")]
        assert store.is_cut_off
        found = [item.key async for item in inner.scan("", "", "")]
        assert found == (["a", "b"] if carried_out else ["a"])
        store.reconnect()
        await store.ping()


async def test_store_is_cut_off_in_the_middle_of_a_scan() -> None:
    async with MemoryStore() as inner:
        store = FaultyStore(inner)
        await set_(store, "a")
        await set_(store, "b")
        scan = store.scan("", "", "")
        assert (await anext(scan)).key == "a"
        store.cut_off()
        with pytest.raises(CutOffError):
            await anext(scan)


async def test_answer_of_a_call_can_be_lost() -> None:
    async with MemoryStore() as inner:
        store = FaultyStore(inner)

        async def lose(call: Call) -> None:
            raise OSError("the line is dead")

        store.after = lose
        with pytest.raises(OSError, match="line is dead"):
            await set_(store, "a")
        assert (await inner.get(GetRequest(key="a"))).data == b"x"
