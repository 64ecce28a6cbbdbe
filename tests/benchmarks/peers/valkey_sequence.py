"""Events as a sequence of commands, one after the other, as go-statemachine (v0.14.0) sends them.

SET the event; WATCH and GET the machine, GET its configuration; SREM and SADD its id; MULTI, SET the machine, EXEC; SET
the outcome. Only the machine itself is safe from others, and a crash may come between any two of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import WatchError

from hsm.fsm.domain import ConfiguredStateMachine
from hsm.fsm.keys import (
    new_key_for_config,
    new_key_for_event,
    new_key_for_machine,
    new_key_for_machines_by_state,
    new_key_for_outcome,
)
from persistence.proto.statemachine_pb2 import Configuration, Event, EventOutcome, FiniteStateMachine

__all__ = ["sequence"]

_ATTEMPTS: Final = 3


async def _process(client: Redis, id_: str, name: str, event: Event) -> EventOutcome:
    await client.set(new_key_for_event(event.event_id, name), event.SerializeToString())
    key = new_key_for_machine(id_, name)
    for _ in range(_ATTEMPTS):
        async with client.pipeline(transaction=True) as pipeline:
            await pipeline.watch(key)
            machine = FiniteStateMachine.FromString(_bytes(await pipeline.get(key)))
            before = machine.state
            value = await pipeline.get(new_key_for_config(machine.config_id))
            ConfiguredStateMachine(Configuration.FromString(_bytes(value)), machine).send_event(event)
            await client.srem(new_key_for_machines_by_state(name, before), id_)
            await client.sadd(new_key_for_machines_by_state(name, machine.state), id_)
            pipeline.multi()  # type: ignore[no-untyped-call]  # it answers with nothing
            pipeline.set(key, machine.SerializeToString())  # type: ignore[unused-awaitable]  # in a pipeline it waits
            try:
                await pipeline.execute()
            except WatchError:
                continue
        outcome = EventOutcome(id=id_, config=name)
        await client.set(new_key_for_outcome(event.event_id, name), outcome.SerializeToString())
        return outcome
    raise RuntimeError(f"retries exceeded for {key}")


def _bytes(reply: object) -> bytes:
    assert isinstance(reply, bytes)
    return reply


@asynccontextmanager
async def sequence(port: int, concurrency: int) -> AsyncIterator[Callable[..., Awaitable[EventOutcome]]]:
    """Processes events at a port, with a connection for each of so many callers, and one for their sets."""
    async with Redis(port=port, max_connections=2 * concurrency) as client:
        await client.ping()
        yield partial(_process, client)
