"""What every store of machines does as a whole, and with configurations."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest

from hsm.fsm import (
    AlreadyExistsError,
    ConfigStore,
    ConfigurationNotFoundError,
    EventStore,
    FSMStore,
    InvalidDataError,
    MalformedConfigurationError,
    StoreManager,
)
from persistence.proto.statemachine_pb2 import (
    Configuration,
)
from tests.support.fsm.configurations import configuration, counter, orders
from tests.support.fsm.world import World


class ManagerSuite:
    """The store as a whole."""

    async def test_store_is_all_it_should_be(self, world: World) -> None:
        store = await world.open()

        assert isinstance(store, ConfigStore)
        assert isinstance(store, FSMStore)
        assert isinstance(store, EventStore)
        assert isinstance(store, StoreManager)

    async def test_open_store_is_healthy(self, world: World) -> None:
        await (await world.open()).health()

    async def test_timeout_is_what_was_set(self, world: World) -> None:
        store = await world.open()

        store.set_timeout(timedelta(seconds=7))

        assert store.get_timeout() == timedelta(seconds=7)
        with pytest.raises(InvalidDataError, match="negative"):
            store.set_timeout(timedelta(seconds=-1))

    async def test_log_level_is_set(self, world: World) -> None:
        (await world.open()).set_log_level(logging.WARNING)

    async def test_closing_twice_does_nothing(self, world: World) -> None:
        store = await world.open()

        await store.aclose()
        await store.aclose()


class ConfigurationsSuite:
    """Configurations: immutable, listed by name and version."""

    async def test_configuration_is_read_as_it_was_put(self, world: World) -> None:
        store = await world.open()

        await store.put_config(orders())

        assert await store.get_config("orders:v1") == orders()
        assert await (await world.open()).get_config("orders:v1") == orders()

    @pytest.mark.parametrize("config_id", ["orders:v1", "orders", "", ":", "orders:", "with blanks:v1"])
    async def test_unknown_configuration_is_not_found(self, world: World, config_id: str) -> None:
        with pytest.raises(ConfigurationNotFoundError) as caught:
            await (await world.open()).get_config(config_id)
        assert caught.value.key == config_id

    async def test_configuration_is_never_replaced(self, world: World) -> None:
        store = await world.open()
        await store.put_config(orders())
        other = configuration([("a", "b", "go")], name="orders")

        for again in (other, orders()):
            with pytest.raises(AlreadyExistsError, match="orders:v1 already exists"):
                await store.put_config(again)

        assert await (await world.open()).get_config("orders:v1") == orders()

    async def test_one_of_many_writers_succeeds(self, world: World) -> None:
        stores = [await world.open() for _ in range(3)]
        variants = [configuration([("a", f"b{number}", "go")], name="race") for number in range(9)]

        answers = await asyncio.gather(
            *(stores[number % 3].put_config(variant) for number, variant in enumerate(variants)),
            return_exceptions=True,
        )

        (winner,) = [variants[number] for number, answer in enumerate(answers) if answer is None]
        assert all(isinstance(answer, AlreadyExistsError) for answer in answers if answer is not None)
        assert await stores[0].get_config("race:v1") == winner

    @pytest.mark.parametrize(
        "malformed",
        [
            Configuration(),
            orders(name=""),
            orders(version=""),
            orders(name="a:b"),
            orders(name="orders#v3"),
            orders(version="v:3"),
        ],
    )
    async def test_configuration_needs_an_identity(self, world: World, malformed: Configuration) -> None:
        store = await world.open()

        with pytest.raises(MalformedConfigurationError):
            await store.put_config(malformed)

        assert await store.get_all_configs() == []

    async def test_names_and_versions_are_listed_in_order(self, world: World) -> None:
        store = await world.open()
        for each in (orders("v2"), orders("v10"), orders("v1"), orders(name="test.orders"), counter("a")):
            await store.put_config(each)

        assert await store.get_all_configs() == ["a", "orders", "test.orders"]
        assert await store.get_all_versions("orders") == ["orders:v1", "orders:v10", "orders:v2"]
        assert await store.get_all_versions("unknown") == []

    async def test_every_listed_version_can_be_read(self, world: World) -> None:
        store, reader = await world.open(), await world.open()

        async def write() -> None:
            for number in range(20):
                await store.put_config(orders(f"v{number}"))

        writing = asyncio.create_task(write())
        while not writing.done():
            for config_id in await reader.get_all_versions("orders"):
                assert (await reader.get_config(config_id)).name == "orders"
            await asyncio.sleep(0)
        await writing

    async def test_what_is_read_can_be_changed_without_harm(self, world: World) -> None:
        store = await world.open()
        await store.put_config(orders())

        (await store.get_config("orders:v1")).states.append("mine")

        assert await store.get_config("orders:v1") == orders()
