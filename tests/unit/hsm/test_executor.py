"""Running the executor of a task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

import pytest

from hsm import AccessType, Environment, ExecutionKey, Node, NotRegisteredError, Ref, execute
from tests.support.machines import (
    Announce,
    Charge,
    Money,
    Order,
    OrderState,
    Remind,
    new_order,
    pay,
    shop_registry,
)

R = TypeVar("R")
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
REF = Ref(ExecutionKey("shop", "order-1"))


class OneTree:
    """An environment that holds one tree and commits nothing."""

    def __init__(self) -> None:
        self.root = new_order()
        self.updated: list[Ref] = []

    def now(self) -> datetime:
        return NOON

    @asynccontextmanager
    async def access(self, ref: Ref, access: AccessType, *, keep_task: bool = False) -> AsyncIterator[Node]:
        yield self.root.child(ref.path)

    async def read(self, ref: Ref, fn: Callable[[Node], R]) -> R:
        return fn(self.root.child(ref.path))

    async def update(self, ref: Ref, fn: Callable[[Node], R], *, keep_task: bool = False) -> R:
        self.updated.append(ref)
        return fn(self.root.child(ref.path))


async def test_executor_gets_environment_ref_and_task() -> None:
    registry, env = shop_registry(), OneTree()
    calls: list[tuple[Environment, Ref, Charge]] = []

    async def run(env: Environment, ref: Ref, task: Charge) -> None:
        calls.append((env, ref, task))
        await env.update(ref, lambda node: node.apply(pay, Money(1)))

    registry.register_executor(Charge, run)
    await execute(registry, env, REF, Charge("acme"))

    assert calls == [(env, REF, Charge("acme"))]
    assert env.root.data(Order).state is OrderState.PAID


async def test_timer_executor_runs_inside_one_update() -> None:
    registry, env = shop_registry(), OneTree()

    def fire(env: Environment, node: Node, task: Remind) -> None:
        assert env.now() == task.deadline
        node.apply(pay, Money(2))

    registry.register_timer_executor(Remind, fire)
    await execute(registry, env, REF, Remind(NOON))

    assert env.updated == [REF]
    assert env.root.data(Order).notes == ["paid 2"]


async def test_task_without_an_executor_is_refused() -> None:
    with pytest.raises(NotRegisteredError, match="task type 'announce'"):
        await execute(shop_registry(), OneTree(), REF, Announce())


async def test_error_of_an_executor_goes_through() -> None:
    registry = shop_registry()

    async def run(env: Environment, ref: Ref, task: Charge) -> None:
        raise ConnectionError(task.bank)

    registry.register_executor(Charge, run)
    with pytest.raises(ConnectionError, match="acme"):
        await execute(registry, OneTree(), REF, Charge("acme"))
