"""Configured machines, used as they are meant to be."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import timedelta
from typing import assert_type

from shop import OrderState, pay

from hsm.fsm import (
    AcceptedEvent,
    ConfigStore,
    ConfiguredStateMachine,
    DatabaseStore,
    EventProcessor,
    EventStore,
    FSMStore,
    MachineTransition,
    Notification,
    RedisStore,
    RedisStoreOptions,
    StoreManager,
    configuration_of,
    new_event,
    new_state_machine,
    transitions_of,
)
from hsm.goalstate import Planner
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventOutcome,
    EventRequest,
    EventResponse,
    FiniteStateMachine,
)


async def use(store: StoreManager, configuration: Configuration) -> None:
    await store.put_config(configuration)
    machine = new_state_machine(configuration)
    assert_type(await store.put_state_machine("1", machine, expected_revision=0), int)
    assert_type(await store.get_state_machine("1", "orders"), FiniteStateMachine)
    assert_type(await store.get_all_in_state("orders", "new", after="1", limit=5), Sequence[str])
    assert_type(await store.tx_process_event("1", "orders", new_event("pay")), EventOutcome)
    async for name, id_ in store.pending_machines():
        pending = await store.pending_events(id_, name)
        assert_type(pending, Sequence[AcceptedEvent])
        await store.process_events(pending)
        assert_type(pending[0].damage, bytes | None)
    async for notification in store.notifications("orders"):
        assert_type(notification, Notification)
    await store.sweep()


async def tell(response: EventResponse) -> None: ...


async def process(store: StoreManager) -> None:
    async with EventProcessor(store, publish=tell) as processor:
        assert_type(await processor.submit(EventRequest()), EventResponse)
        settled: Awaitable[EventResponse] = await processor.accept(EventRequest())
        assert_type(await settled, EventResponse)


manager: StoreManager = DatabaseStore("memory://")
configs: ConfigStore = manager
machines: FSMStore = manager
events: EventStore = manager
layout: StoreManager = RedisStore("localhost:6379", True, 0, timedelta(seconds=1), 3)
assert_type(RedisStore.with_defaults("localhost:6379", db=1), RedisStore)


async def share() -> None:
    options = RedisStoreOptions(tls=True, notify=True, event_ttl=timedelta(days=1))
    async with RedisStore("localhost:6379", namespace="tenant", options=options) as store:
        assert_type(store, RedisStore)
        assert_type(store.get_timeout(), timedelta)
        assert_type(await store.tx_process_event("1", "orders", new_event("pay")), EventOutcome)
        assert_type(await store.repair("orders"), int)


configuration = configuration_of([pay], name="orders", start=OrderState.NEW)
assert_type(configuration, Configuration)
assert_type(transitions_of(configuration), tuple[MachineTransition, ...])
planner: Planner[str] = Planner(transitions_of(configuration))
assert_type(ConfiguredStateMachine(configuration).send_event(Event()), Event)
