"""Sagas: what is pending, and nothing else."""

from __future__ import annotations

import pytest

from hsm.aggregate import Saga, SagaConflictError, Sagas
from hsm.testing import Call
from tests.support.journals import World


async def pending(sagas: Sagas, prefix: str = "") -> list[Saga]:
    return [saga async for saga in sagas.pending(prefix)]


async def test_recorded_saga_is_pending_until_it_is_forgotten(world: World) -> None:
    sagas = Sagas(world.store, world.namespace)
    first, second = Saga("a/1", b"one"), Saga("b/1", b"two")
    await sagas.record(second)
    await sagas.record(first)

    assert await pending(sagas) == [first, second]
    assert await pending(sagas, "b/") == [second]
    assert await pending(sagas, "a") == [first]
    assert await pending(Sagas(world.store, world.namespace + "x")) == []
    await sagas.forget(first)
    await sagas.forget(first)
    assert await pending(sagas) == [second]


async def test_saga_can_be_recorded_again_but_not_as_another_one(world: World) -> None:
    sagas = Sagas(world.store, world.namespace)
    await sagas.record(Saga("a", b"one"))
    await sagas.record(Saga("a", b"one"))

    with pytest.raises(SagaConflictError):
        await sagas.record(Saga("a", b"two"))
    assert await pending(sagas) == [Saga("a", b"one")]


async def test_saga_that_has_taken_the_id_of_another_one_stays(world: World) -> None:
    """Two have carried out the first saga, and the second one is recorded before both have forgotten it."""
    sagas, behind = Sagas(world.faulty, world.namespace), Sagas(world.store, world.namespace)
    first, second = Saga("a", b"one"), Saga("a", b"two")
    await sagas.record(first)

    async def overtake(call: Call) -> None:
        if call.method == "delete":
            world.faulty.before = None
            await behind.forget(first)
            await behind.record(second)

    world.faulty.before = overtake
    await sagas.forget(first)
    await sagas.forget(first)

    assert await pending(sagas) == [second]
