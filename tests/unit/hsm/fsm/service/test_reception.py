"""Reception: a request that leads nowhere is refused for good, whatever is wrong with it besides."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsm.fsm import DatabaseStore, EventProcessor, NotFoundError, new_state_machine
from hsm.fsm.service import PoisonError
from hsm.fsm.service.reception import Reception
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, EventResponse
from tests.support.fsm.configurations import orders
from tests.support.fsm.service import event_for


class Published:
    """A publisher that remembers."""

    def __init__(self) -> None:
        self.responses: list[EventResponse] = []

    async def publish(self, response: EventResponse) -> None:
        self.responses.append(response)


@pytest.mark.parametrize(
    "request_", [event_for("", "accept", event_id="e\0"), event_for("", "accept", config="\0", event_id="e1")]
)
async def test_request_without_destination_that_cannot_be_stored_is_poison(
    request_: EventRequest, tmp_path: Path
) -> None:
    published = Published()
    async with DatabaseStore(f"memory://{tmp_path.name}") as store, EventProcessor(store) as processor:
        await store.put_config(orders())
        with pytest.raises(PoisonError):
            await (await Reception(store, processor, published, "default").accept(request_))

        with pytest.raises(NotFoundError):
            await store.get_event("e1", "orders")
    assert [each.outcome.code for each in published.responses] == [EventOutcome.MissingDestination]


LONG = "x" * 200_000


@pytest.mark.parametrize(
    "request_",
    [
        event_for("1", LONG, event_id="e1"),
        event_for("1", "\n", event_id="e1"),
        event_for(LONG, "accept", event_id="e1"),
        event_for("1", "accept", event_id=LONG),
        event_for("1", "accept", event_id="e1", config=LONG),
        event_for("", "accept", event_id=LONG),
        event_for("", "accept", event_id="e1", config=LONG),
    ],
)
async def test_names_that_no_queue_could_carry_are_poison_and_not_published(
    request_: EventRequest, tmp_path: Path
) -> None:
    published = Published()
    async with DatabaseStore(f"memory://{tmp_path.name}") as store, EventProcessor(store) as processor:
        await store.put_config(orders())
        await store.put_state_machine("1", new_state_machine(orders()))
        with pytest.raises(PoisonError):
            await (await Reception(store, processor, published, "default").accept(request_))

        with pytest.raises(NotFoundError):
            await store.get_event("e1", "orders")
    assert published.responses == []
