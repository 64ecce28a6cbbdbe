"""Mistakes that are easily made: each is told at once, and in words that say what to do."""

from __future__ import annotations

from typing import Any

import pytest

from hsm import ExecutionKey, Node, Registry, TransitionOutput
from hsm.engine import Engine
from hsm.testing import TestEngine
from persistence.stores.memory import MemoryStore
from tests.support.machines import Announce, Order, OrderState, shop_registry

KEY = ExecutionKey("shop", "order")


async def test_engine_that_was_not_entered_says_how_that_is_done() -> None:
    async with MemoryStore() as store:
        engine = Engine(shop_registry(), store)
        with pytest.raises(RuntimeError, match="use `async with Engine"):
            await engine.start(KEY, Order())
        with pytest.raises(AttributeError, match="'Engine' object has no attribute 'strat'"):
            engine.strat  # type: ignore[attr-defined]  # noqa: B018 - misspelt


async def test_engine_is_opened_once() -> None:
    """Entered again, inside its block or after it, it would run without what it has ended already."""
    async with MemoryStore() as store:
        engine = Engine(shop_registry(), store)
        async with engine:
            with pytest.raises(RuntimeError, match="an engine is opened once"):
                await engine.__aenter__()
            await engine.start(KEY, Order())
        with pytest.raises(RuntimeError, match="an engine is opened once"):
            await engine.__aenter__()


def test_url_is_no_store() -> None:
    url: Any = "memory://"
    with pytest.raises(TypeError, match="takes an open store, not a URL"):
        Engine(shop_registry(), url)


@pytest.mark.parametrize("key", ["order", ("shop", "order")])
async def test_id_is_no_key(key: Any) -> None:
    async with TestEngine(shop_registry()) as engine:
        with pytest.raises(TypeError, match=r"names no execution: `ExecutionKey\(namespace, id\)` does"):
            await engine.start(key, Order())


async def test_key_is_no_reference() -> None:
    key: Any = KEY
    async with TestEngine(shop_registry()) as engine:
        await engine.start(KEY, Order())
        with pytest.raises(TypeError, match="is no Ref"):
            await engine.read(key, lambda _node: None)


def test_class_of_the_data_is_no_definition() -> None:
    class_: Any = Order
    with pytest.raises(TypeError, match=r"Order'> is no definition of machines: `attrs_definition`"):
        Registry().register_machine(class_)


async def test_coroutine_function_of_a_node_is_refused_and_changes_nothing() -> None:
    async def wait(node: Node) -> None:
        raise AssertionError

    async with TestEngine(shop_registry()) as engine:
        with pytest.raises(TypeError, match="wait is a coroutine function"):
            await engine.start(KEY, Order(), on_start=wait)
        ref = await engine.start(KEY, Order())
        before = await engine.describe(KEY)
        for use in (engine.read, engine.update):
            with pytest.raises(TypeError, match="wait is a coroutine function"):
                await use(ref, wait)  # type: ignore[unused-coroutine]  # that is the mistake
        with pytest.raises(TypeError, match="wait is a coroutine function"):
            await engine.signal(ref, wait, request_id="1")
        assert await engine.describe(KEY) == before


async def test_plain_function_that_is_registered_as_an_executor_runs_once_and_is_told_of() -> None:
    runs: list[str] = []

    def announce(env: object, ref: object, task: Announce) -> Any:
        runs.append("announce")

    registry = shop_registry()
    registry.register_executor(Announce, announce)
    async with TestEngine(registry) as engine:
        asked, paid = TransitionOutput((Announce(),)), Order(OrderState.PAID)
        await engine.start(KEY, paid, on_start=lambda node: node.transition(Order, lambda _: asked))
        await engine.drain()
        (dead,) = [letter async for letter in engine.dead_letters()]
        assert "returned None: executors are coroutine functions" in dead.error
    assert runs == ["announce"]
