"""Configured machines: a wrong message, a state of another type, a store that is none, a publisher of the wrong thing."""

from __future__ import annotations

from shop import pay

from hsm.fsm import (
    ConfigStore,
    DatabaseStore,
    EventProcessor,
    RedisStore,
    RedisStoreOptions,
    StoreManager,
    configuration_of,
    new_event,
)
from persistence.proto.statemachine_pb2 import Configuration, EventOutcome, FiniteStateMachine


class Half:
    async def get_config(self, config_id: str) -> Configuration:
        return Configuration(name=config_id)


async def publish(outcome: EventOutcome) -> None: ...


store = DatabaseStore("memory://")
# mypy-error: Incompatible types in assignment
# pyright-error: "Half" is not assignable to declared type "ConfigStore"
half: ConfigStore = Half()
# mypy-error: Cannot infer value of type parameter "StateT"
# pyright-error: str
configuration_of([pay], name="orders", start="NEW")
# mypy-error: incompatible type
# pyright-error: "EventResponse" is not assignable to "EventOutcome"
EventProcessor(store, publish=publish)
# mypy-error: incompatible type "float"; expected "timedelta"
# pyright-error: "float" is not assignable to "timedelta"
RedisStore("localhost:6379", timeout=0.2)
# mypy-error: incompatible type "int"; expected "timedelta"
# pyright-error: "timedelta"
RedisStoreOptions(event_ttl=60)
# mypy-error: has incompatible type "RedisStoreOptions"
# pyright-error: "RedisStoreOptions" is not assignable
DatabaseStore("memory://", options=RedisStoreOptions())


async def use(store: StoreManager) -> None:
    # mypy-error: "EventOutcome", variable has type "FiniteStateMachine"
    # pyright-error: "EventOutcome" is not assignable to declared type "FiniteStateMachine"
    machine: FiniteStateMachine = await store.tx_process_event("1", "orders", new_event("pay"))
    # mypy-error: incompatible type "FiniteStateMachine"; expected "Configuration"
    # pyright-error: "FiniteStateMachine" is not assignable to "Configuration"
    await store.put_config(machine)
    # mypy-error: positional arguments
    # pyright-error: positional arguments
    await store.put_state_machine("1", machine, 1)
    # mypy-error: Missing positional argument "event"
    # pyright-error: "event"
    await store.tx_process_event("1", "orders")
