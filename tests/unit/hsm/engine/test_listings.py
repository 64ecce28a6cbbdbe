"""Listings: filters by what roots show, by time and by state; pages; the index behind them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from hsm import (
    ExecutionKey,
    InvalidSearchAttributeError,
    Lifecycle,
    MachineType,
    Node,
    Ref,
    attrs_definition,
)
from hsm.engine import Between, Cluster, Engine, HasSearchAttributes, ReusePolicy, SearchValue
from hsm.engine._search import index_values, matches
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database, new_database
from tests.support.jobs import Job, World, finish, job, log, note, small, started

SECOND = timedelta(seconds=1)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
FAR = datetime(2200, 1, 1, tzinfo=UTC)


@attrs.define
class Order(Job):
    """Shows what its log says: `name=value` pairs, each value a Python literal of a simple type."""

    shown: dict[str, str] = attrs.field(factory=dict)

    def search_attributes(self) -> Mapping[str, SearchValue]:
        return {name: parse(value) for name, value in self.shown.items()}


def parse(text: str) -> SearchValue:
    kind, _, value = text.partition(":")
    if kind == "b":
        return value == "1"
    if kind == "i":
        return int(value)
    if kind == "f":
        return float(value)
    if kind == "t":
        return datetime.fromisoformat(value)
    return value.split(",") if kind == "k" else value


def show(**values: str) -> Callable[[Node], None]:
    def change(order: Order) -> None:
        order.shown = values

    return lambda node: node.transition(Order, change)


@pytest.fixture
def world() -> World:
    return orders()


def orders() -> World:
    world = World()
    world.registry.register_machine(attrs_definition(MachineType(3, "order"), Order))
    return world


async def order(engine: Engine, id_: str, **values: str) -> Ref:
    return await engine.start(job(id_), Order(shown=values))


async def found(engine: Engine, **attributes: SearchValue | Between) -> list[str]:
    """The ids that match; the same with the index and without."""
    by_index = sorted([info.key.id async for info in engine.list(namespace="tests", attributes=attributes)])
    by_scan = sorted([info.key.id async for info in engine.list(attributes=attributes)])
    assert by_index == by_scan
    assert await engine.count(namespace="tests", attributes=attributes) == len(by_index)
    return by_index


async def test_executions_are_found_by_what_their_roots_show(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await order(engine, "a", city="s:Paris/%", paid="b:1", total="i:5", weight="f:0.5", tags="k:red,big")
        await order(engine, "b", city="s:Paris", paid="b:0", total="i:-5", weight="f:-2", tags="k:red")
        await order(engine, "c", city="s:Rome", total="i:50", due=f"t:{NOON.isoformat()}")
        await started(engine, "shows nothing")

        assert isinstance(Order(), HasSearchAttributes)
        assert await found(engine, city="Paris") == ["b"]
        assert await found(engine, city="Paris/%") == ["a"]
        assert await found(engine, paid=True) == ["a"]
        assert await found(engine, paid=False) == ["b"]
        assert await found(engine, total=5) == ["a"]
        assert await found(engine, weight=-2.0) == ["b"]
        assert await found(engine, due=NOON) == ["c"]
        assert await found(engine, tags="red") == ["a", "b"]
        assert await found(engine, tags="big") == ["a"]
        assert await found(engine, tags=["red", "big"]) == ["a"]
        assert await found(engine, tags="red", paid=False) == ["b"]
        assert await found(engine, nothing="x") == []


async def test_executions_are_found_by_bounds(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        for id_, total in (("a", "i:-5"), ("b", "i:5"), ("c", "i:50"), ("d", "f:5.5")):
            await order(engine, id_, total=total, name=f"s:{id_}", due=f"t:{NOON.isoformat()}")

        assert await found(engine, total=Between(5, 50)) == ["b", "d"]
        assert await found(engine, total=Between(high=5)) == ["a"]
        assert await found(engine, total=Between(5.2)) == ["c", "d"]
        assert await found(engine, total=Between(float("-inf"), float("inf"))) == ["a", "b", "c", "d"]
        assert await found(engine, name=Between("b", "d")) == ["b", "c"]
        assert await found(engine, due=Between(NOON, FAR)) == ["a", "b", "c", "d"]
        assert await found(engine, due=Between(high=NOON)) == []


async def test_index_follows_the_root(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await order(engine, "job", city="s:Paris", tags="k:a,b")
        assert len(await database.keys("a/")) == 3
        await engine.update(ref, show(city="s:Rome", tags="k:b,c"))
        assert await found(engine, city="Paris") == []
        assert await found(engine, city="Rome") == await found(engine, tags="c") == ["job"]
        assert len(await database.keys("a/")) == 3
        await engine.update(ref, show())
        assert await database.keys("a/") == []
        await engine.update(ref, show(city="s:Oslo"))
        await engine.delete(job(), force=True)
        assert await database.keys("a/") == []


async def test_each_run_is_found_by_its_own_values(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        old = await order(engine, "job", city="s:Paris")
        await engine.update(old, finish())
        await engine.start(job(), Order(shown={"city": "s:Rome"}), reuse=ReusePolicy.ALLOW)
        assert await found(engine, city="Paris") == await found(engine, city="Rome") == ["job"]


async def test_listing_tells_attributes_and_memo(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Order(shown={"total": "i:5", "tags": "k:x"}), memo=b"note")
        (info,) = [info async for info in engine.list()]
        assert (dict(info.attributes), info.memo) == ({"total": 5, "tags": ("x",)}, b"note")


async def test_value_that_cannot_be_shown_is_refused(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await order(engine, "job", total="i:1")
        with pytest.raises(InvalidSearchAttributeError, match="'total'"):
            await engine.update(ref, show(total=f"i:{2**63}"))
        assert await found(engine, total=1) == ["job"]
        await engine.update(ref, note("goes on"))
        assert await engine.read(ref, log) == ["goes on"]


async def test_long_texts_are_told_apart(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        text = "x" * 5000
        await order(engine, "a", text=f"s:{text}a")
        await order(engine, "b", text=f"s:{text}b")
        assert await found(engine, text=f"{text}b") == ["b"]


async def test_executions_are_found_by_time(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        begin = engine.now()
        for id_ in ("a", "b", "c"):
            await order(engine, id_)
            await engine.skip(10 * SECOND)
        await engine.update(Ref(job("a")), finish())

        async def ids(started: Between | None = None, closed: Between | None = None) -> list[str]:
            return sorted([info.key.id async for info in engine.list(started=started, closed=closed)])

        assert await ids(started=Between(begin, begin + 11 * SECOND)) == ["a", "b"]
        assert await ids(started=Between(begin + SECOND)) == ["b", "c"]
        assert await ids(closed=Between(begin, FAR)) == ["a"]
        assert await ids(closed=Between(FAR)) == []


async def test_another_cluster_finds_them_too(world: World, database: Database) -> None:
    east, west = (small(cluster=Cluster(id=id_, peers=(3 - id_,))) for id_ in (1, 2))
    async with (
        new_database("memory", Path()) as other,
        TestEngine(world.registry, database.store, east) as engine,
        TestEngine(world.registry, other.store, west) as replica,
    ):
        ref = await order(engine, "job", city="s:Paris")
        await replica.apply_delta(await engine.changes_since(job()))
        assert await found(replica, city="Paris") == ["job"]
        await engine.update(ref, show(city="s:Rome"))
        await replica.apply_delta(await engine.changes_since(job()))
        assert await found(replica, city="Paris") == []
        assert await found(replica, city="Rome") == ["job"]
        assert len(await other.keys("a/")) == 1


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_pages_hold_each_execution_once(
    world: World, database: Database, size: int, by_index: bool
) -> None:
    options = small(shard_count=3)
    async with (
        TestEngine(world.registry, database.store, options) as engine,
        TestEngine(world.registry, await database.open(), options, run_tasks=False) as other,
    ):
        for number in range(12):
            await order(engine, str(number), even=f"b:{(number + 1) % 2}")
        wanted: Mapping[str, SearchValue | Between] = {"even": True}
        token, seen, engines = "", list[ExecutionKey](), [engine, other]
        while True:
            engines.reverse()
            page = await engines[0].page(
                size=size,
                token=token,
                namespace="tests" if by_index else None,
                status=Lifecycle.RUNNING,
                attributes=wanted,
            )
            seen += [info.key for info in page.executions]
            assert len(page.executions) == size or not page.token
            token = page.token
            if not token:
                break
        assert sorted(int(key.id) for key in seen) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("token", ["x", "1", ":", "x:y", "0:a/tests/x/kx/id/run", "0:z/tests"])
async def test_token_that_is_none_is_refused(world: World, database: Database, token: str) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        with pytest.raises(ValueError, match="token"):
            await engine.page(token=token)


@pytest.mark.parametrize("bound", [datetime(2030, 1, 1), math.nan])  # noqa: DTZ001 - that is what is wrong
def test_bound_that_compares_with_nothing_is_refused(bound: float | datetime) -> None:
    with pytest.raises(ValueError, match="low"):
        Between(low=bound)
    with pytest.raises(ValueError, match="high"):
        Between(high=bound)


async def test_page_of_nothing_is_refused(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        with pytest.raises(ValueError, match="a page of 0 executions"):
            await engine.page(size=0)


numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)
floats = st.floats(allow_nan=False)
times = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone


@given(st.tuples(numbers, numbers) | st.tuples(floats, floats) | st.tuples(times, times))
def test_index_sorts_numbers_and_times_as_they_are(
    pair: tuple[int, int] | tuple[float, float] | tuple[datetime, datetime],
) -> None:
    (low,), (high,) = index_values(pair[0]), index_values(pair[1])
    assert (low < high) == (pair[0] < pair[1])  # type: ignore[operator]  # both are of one type


values = st.sampled_from(
    ["b:0", "b:1", "i:0", "i:1", "i:-1", "f:0", "f:1.5", "f:-1", "s:", "s:a", "s:a/", "k:a,b"]
)
bounds = st.none() | st.sampled_from([-1, 0, 1, 1.5, -0.5])
filters = values.map(parse) | st.builds(Between, bounds, bounds) | st.builds(Between, st.sampled_from("a/b"))


@settings(max_examples=60, deadline=None)
@given(st.lists(values, max_size=6), st.lists(filters, min_size=1, max_size=4))
def test_index_finds_what_a_look_at_all_executions_finds(
    shown: list[str], wanted: list[SearchValue | Between]
) -> None:
    asyncio.run(compare(shown, wanted))


async def compare(shown: list[str], wanted: list[SearchValue | Between]) -> None:
    async with (
        new_database("memory", Path()) as database,
        TestEngine(orders().registry, database.store, clock=FakeClock()) as engine,
    ):
        for number, value in enumerate(shown):
            await order(engine, str(number), x=value)
        for each in wanted:
            expected = [str(number) for number, value in enumerate(shown) if matches(parse(value), each)]
            assert await found(engine, x=each) == expected
