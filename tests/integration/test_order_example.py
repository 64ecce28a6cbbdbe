"""The order of the tutorial: every way through it, across stops, kills and time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from docs.examples import order as example
from docs.examples.order import Order, OrderState, Request, RequestState
from hsm import Collection, ExecutionKey, Lifecycle, Node, Ref
from hsm.engine import Engine, EngineOptions
from hsm.testing import FakeClock, TestEngine
from persistence import EngineStore, connect, require

KEY = ExecutionKey("shop", "lamp")
RESERVATION = timedelta(minutes=15)
STOP_AT_ONCE = EngineOptions(drain_timeout=timedelta())


class Partners:
    """A bank and a carrier that note what they are asked, and answer as the test says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ids: list[str] = []
        self.refuse: set[str] = set()
        self.down = False
        self.called = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, name: str, text: str, request_id: str) -> bool:
        self.asked.append(text)
        self.ids.append(request_id)
        self.called.set()
        await self.open.wait()
        if self.down:
            raise ConnectionError(f"the {name} does not answer")
        return text not in self.refuse


@pytest.fixture
def partners(monkeypatch: pytest.MonkeyPatch) -> Partners:
    partners = Partners()
    monkeypatch.setattr(example, "partner", partners)
    return partners


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EngineStore]:
    async with connect(f"sqlite:///{tmp_path / 'orders.db'}") as store:
        yield require(store, EngineStore)


async def place(engine: Engine) -> Ref:
    until = engine.now() + RESERVATION
    return await engine.start(
        KEY, Order("lamp", 50), request_id="1", on_start=lambda node: example.place(node, until)
    )


def standing(node: Node) -> tuple[OrderState, dict[str, RequestState]]:
    requests = Collection(node, example.REQUEST.id, Request)
    return node.data(Order).state, {name: requests.data(name).state for name in requests}


async def test_an_order_that_everybody_grants_is_shipped(store: EngineStore, partners: Partners) -> None:
    async with TestEngine(example.registry, store) as engine:
        ref = await place(engine)
        await engine.drain()
        assert await engine.read(ref, standing) == (
            OrderState.SHIPPED,
            {"payment": RequestState.GRANTED, "shipment": RequestState.GRANTED},
        )
        assert partners.asked == ["take 50", "ship lamp"]
        await engine.skip(2 * RESERVATION)
        assert (await engine.read(ref, standing))[0] is OrderState.SHIPPED


async def test_a_shipment_that_is_refused_gives_the_money_back(
    store: EngineStore, partners: Partners
) -> None:
    partners.refuse = {"ship lamp"}
    async with TestEngine(example.registry, store) as engine:
        ref = await place(engine)
        await engine.drain()
        assert await engine.read(ref, standing) == (
            OrderState.CANCELLED,
            {
                "payment": RequestState.GRANTED,
                "shipment": RequestState.REFUSED,
                "refund": RequestState.GRANTED,
            },
        )
    assert partners.asked == ["take 50", "ship lamp", "give back 50"]


async def test_a_payment_that_is_refused_cancels_the_order(store: EngineStore, partners: Partners) -> None:
    partners.refuse = {"take 50"}
    async with TestEngine(example.registry, store) as engine:
        ref = await place(engine)
        await engine.drain()
        await engine.skip(RESERVATION)
        assert await engine.read(ref, standing) == (
            OrderState.CANCELLED,
            {"payment": RequestState.REFUSED},
        )
    assert partners.asked == ["take 50"]


async def test_a_payment_that_is_refused_after_the_reservation_has_ended_cancels_the_order(
    store: EngineStore, partners: Partners
) -> None:
    partners.down = True
    async with TestEngine(example.registry, store) as engine:
        ref = await place(engine)
        await engine.skip(RESERVATION)
        assert (await engine.read(ref, standing))[0] is OrderState.CANCELLING
        partners.down, partners.refuse = False, {"take 50"}
        await engine.skip(RESERVATION)
        assert (await engine.read(ref, standing))[0] is OrderState.CANCELLED
    assert set(partners.asked) == {"take 50"}


@pytest.mark.parametrize(
    ("refuse", "status"),
    [
        (set[str](), Lifecycle.COMPLETED),
        ({"take 50"}, Lifecycle.FAILED),
        ({"ship lamp"}, Lifecycle.FAILED),
        ({"ship lamp", "give back 50"}, Lifecycle.RUNNING),
    ],
)
async def test_an_order_that_is_through_is_closed(
    store: EngineStore, partners: Partners, refuse: set[str], status: Lifecycle
) -> None:
    partners.refuse = refuse
    async with TestEngine(example.registry, store) as engine:
        await place(engine)
        await engine.drain()
        assert [info.status async for info in engine.list()] == [status]


async def test_a_second_engine_finishes_what_the_first_was_stopped_in(
    store: EngineStore, partners: Partners
) -> None:
    partners.open.clear()
    clock = FakeClock()
    async with TestEngine(example.registry, store, STOP_AT_ONCE, clock=clock) as first:
        await place(first)
        await partners.called.wait()
    partners.open.set()
    async with TestEngine(example.registry, store, clock=clock) as second:
        ref = await place(second)
        await second.drain()
        assert (await second.read(ref, standing))[0] is OrderState.SHIPPED
    assert partners.asked == ["take 50", "take 50", "ship lamp"]
    assert partners.ids[0] == partners.ids[1] != partners.ids[2]


async def test_a_reservation_that_expires_while_nothing_runs_is_cancelled_and_paid_back(
    store: EngineStore, partners: Partners
) -> None:
    clock = FakeClock()
    partners.down = True
    async with TestEngine(example.registry, store, clock=clock) as first:
        await place(first)
        await first.drain()
    clock.advance(2 * RESERVATION)
    partners.down = False
    partners.open.clear()
    async with TestEngine(example.registry, store, clock=clock) as second:
        ref = await place(second)
        async with asyncio.timeout(10):
            await second.wait(ref, lambda node: node.data(Order).state is OrderState.CANCELLING)
        partners.open.set()
        await second.drain()
        assert await second.read(ref, standing) == (
            OrderState.CANCELLED,
            {"payment": RequestState.GRANTED, "refund": RequestState.GRANTED},
        )


def test_the_program_goes_on_after_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-u", str(Path(example.__file__).resolve())]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        first = killed.stdout.readline()
        killed.kill()
    assert first.startswith("bank: take")
    second, third = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
        for _ in range(2)
    )
    for output in (second, third):
        assert "book SHIPPED" in output
        assert "piano CANCELLED" in output
    assert "carrier: ship book" in second
    assert "bank" not in third
    assert "carrier" not in third
