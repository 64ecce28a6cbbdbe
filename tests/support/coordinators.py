"""What tests of the ping-registry workflow do with a coordinator, and look at behind its back."""

from __future__ import annotations

from uuid import UUID

from hsm.aggregate import Sagas
from hsm.components.ping_registry import Coordinator
from persistence.journal import NO_VC
from tests.support.journals import World

__all__ = ["events_of", "pending", "summarized"]


async def summarized(coordinator: Coordinator) -> UUID:
    """A workflow that can be committed."""
    begun = await coordinator.begin()
    await coordinator.workflows.append_ping(begun.workflow_id, begun.workflow_vid, 0, "here")
    await coordinator.workflows.post_summary(begun.workflow_id, NO_VC, 0, "all well")
    return begun.workflow_id


async def events_of(world: World, id_: UUID) -> list[int]:
    return [event.message().event async for event in world.other_journal().find(id_)]


async def pending(world: World) -> list[str]:
    return [saga.id async for saga in Sagas(world.store, world.namespace).pending()]
