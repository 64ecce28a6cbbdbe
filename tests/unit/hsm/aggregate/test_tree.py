"""Events on trees: replay, rebuild and cherry-pick."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import attrs
import pytest

import persistence
from hsm import InvalidTransitionError, Key, MachineType, Node, Registry, attrs_definition, transitions
from hsm.aggregate import (
    Event,
    EventDefinitions,
    EventRegistrationError,
    FactDefinition,
    NamedEvents,
    NotCherryPickableError,
    UnknownEventTypeError,
)
from hsm.engine import Engine
from hsm.errors import StateMachineNotFoundError
from persistence import EngineStore
from persistence.journal import EPOCH, Event as JournalEvent, Journal, NewEvent
from tests.support.jobs import job

ORDER: Final = 1
ITEM: Final = 2


class ItemState(enum.Enum):
    WANTED = "wanted"
    SENT = "sent"


@attrs.define
class Order:
    state: str = "open"


@attrs.define
class Item:
    state: ItemState = ItemState.WANTED
    parcel: str = ""


@attrs.frozen
class ItemAdded:
    item: str


@attrs.frozen
class ItemSent:
    item: str
    parcel: str


@attrs.frozen
class Broken:
    item: str


Fact = ItemAdded | ItemSent | Broken

items = transitions(Item)


@items.move([ItemState.WANTED], ItemState.SENT)
def send(item: Item, parcel: str) -> None:
    item.parcel = parcel


def add_item(root: Node, event: Event[Fact]) -> None:
    assert isinstance(event.data, ItemAdded)
    root.add_child(Key(ITEM, event.data.item), Item())


def send_item(root: Node, event: Event[Fact]) -> None:
    assert isinstance(event.data, ItemSent)
    root.child([Key(ITEM, event.data.item)]).apply(send, event.data.parcel)


def break_item(root: Node, event: Event[Fact]) -> None:
    assert isinstance(event.data, Broken)
    root.delete_child(Key(ITEM, event.data.item))
    raise RuntimeError("broken")


def event_codec() -> NamedEvents[Fact]:
    codec = NamedEvents[Fact]()
    codec.register("added", ItemAdded)
    codec.register("sent", ItemSent)
    codec.register("broken", Broken)
    return codec


CODEC: Final = event_codec()


@pytest.fixture
def definitions() -> EventDefinitions:
    return EventDefinitions(
        [
            FactDefinition("added", CODEC, add_item, cherry_pick=None),
            FactDefinition("sent", CODEC, send_item, cherry_pickable=True, is_workflow_task_trigger=True),
            FactDefinition("broken", CODEC, break_item, cherry_pickable=True),
        ]
    )


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.register_machine(attrs_definition(MachineType(ORDER, "order"), Order))
    registry.register_machine(attrs_definition(MachineType(ITEM, "item"), Item))
    return registry


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EngineStore]:
    async with persistence.connect(f"sqlite:///{tmp_path / 'state.db'}") as opened:
        yield persistence.require(opened, EngineStore)


async def history(store: EngineStore, *facts: Fact) -> list[JournalEvent]:
    """Events as a journal keeps them."""
    journal, id_ = Journal(store, "orders"), uuid4()
    events = [NewEvent.of(CODEC.encode(fact)) for fact in facts]
    await journal.commit(id_, events, EPOCH)
    return [event async for event in journal.find(id_)]


def picture(root: Node) -> dict[str, tuple[ItemState, str]]:
    return {
        node.path[-1].id: (node.data(Item).state, node.data(Item).parcel) for node in root.walk() if node.path
    }


STORY: Final = (ItemAdded("book"), ItemAdded("pen"), ItemSent("book", "p1"))


async def test_replay_does_to_a_tree_what_the_events_tell(
    definitions: EventDefinitions, registry: Registry, store: EngineStore
) -> None:
    events = await history(store, *STORY)
    root = Node.new_root(registry, ORDER, Order())

    assert not definitions.replay(root, events[:2])
    assert definitions.replay(root, events[2:])

    assert picture(root) == {"book": (ItemState.SENT, "p1"), "pen": (ItemState.WANTED, "")}
    assert picture(definitions.rebuild(registry, ORDER, Order(), events)) == picture(root)


async def test_replay_is_all_or_nothing(
    definitions: EventDefinitions, registry: Registry, store: EngineStore
) -> None:
    root = Node.new_root(registry, ORDER, Order())
    definitions.replay(root, await history(store, ItemAdded("old")))

    for last, error in ((ItemSent("pen", "p"), StateMachineNotFoundError), (Broken("old"), RuntimeError)):
        with pytest.raises(error):
            definitions.replay(root, await history(store, ItemAdded("book"), last))
        assert picture(root) == {"old": (ItemState.WANTED, "")}


async def test_events_are_committed_with_an_execution(
    definitions: EventDefinitions, registry: Registry, store: EngineStore
) -> None:
    events = await history(store, *STORY)
    async with Engine(registry, store) as engine:
        ref = await engine.start(job(), Order(), machine_type=MachineType(ORDER, "order"))
        await engine.update(ref, lambda root: definitions.replay(root, events))

        assert await engine.read(ref, picture) == {
            "book": (ItemState.SENT, "p1"),
            "pen": (ItemState.WANTED, ""),
        }


async def test_cherry_pick_skips_what_makes_no_sense_there(
    definitions: EventDefinitions, registry: Registry, store: EngineStore
) -> None:
    root = Node.new_root(registry, ORDER, Order())
    definitions.replay(root, await history(store, ItemAdded("book"), ItemAdded("pen")))
    events = await history(
        store, ItemAdded("cup"), ItemSent("book", "p1"), ItemSent("cup", "p2"), ItemSent("book", "p3")
    )

    picked = definitions.cherry_pick(root, events)

    assert picked.applied == (events[1].id,)
    assert [(id_, type(error)) for id_, error in picked.skipped] == [
        (events[0].id, NotCherryPickableError),
        (events[2].id, StateMachineNotFoundError),
        (events[3].id, InvalidTransitionError),
    ]
    assert picture(root) == {"book": (ItemState.SENT, "p1"), "pen": (ItemState.WANTED, "")}


async def test_skipped_event_leaves_nothing_half_done(registry: Registry, store: EngineStore) -> None:
    def move(root: Node, event: Event[Fact]) -> None:
        root.add_child(Key(ITEM, "half"), Item())
        send_item(root, event)

    definitions = EventDefinitions([FactDefinition("sent", CODEC, move, cherry_pickable=True)])
    root = Node.new_root(registry, ORDER, Order())

    picked = definitions.cherry_pick(root, await history(store, ItemSent("book", "p1")))

    assert (picked.applied, picture(root)) == ((), {})


async def test_excluded_types_are_not_picked(
    definitions: EventDefinitions, registry: Registry, store: EngineStore
) -> None:
    root = definitions.rebuild(registry, ORDER, Order(), await history(store, ItemAdded("book")))

    picked = definitions.cherry_pick(root, await history(store, ItemSent("book", "p1")), excluded=["sent"])

    assert (picked.applied, len(picked.skipped)) == ((), 1)
    assert picture(root) == {"book": (ItemState.WANTED, "")}


async def test_any_other_error_undoes_the_whole_pick(
    definitions: EventDefinitions, registry: Registry, store: EngineStore
) -> None:
    root = definitions.rebuild(registry, ORDER, Order(), await history(store, ItemAdded("book")))

    with pytest.raises(RuntimeError):
        definitions.cherry_pick(root, await history(store, ItemSent("book", "p1"), Broken("book")))
    assert picture(root) == {"book": (ItemState.WANTED, "")}


async def test_unknown_types_stop_a_replay_and_are_not_picked(registry: Registry, store: EngineStore) -> None:
    few = EventDefinitions([FactDefinition("sent", CODEC, send_item, cherry_pickable=True)])
    root = Node.new_root(registry, ORDER, Order())
    events = await history(store, ItemAdded("book"))

    with pytest.raises(UnknownEventTypeError, match="added"):
        few.replay(root, events)
    ((id_, error),) = few.cherry_pick(root, events).skipped
    assert (id_, type(error)) == (events[0].id, UnknownEventTypeError)


def test_types_are_defined_once(definitions: EventDefinitions) -> None:
    with pytest.raises(EventRegistrationError, match="sent"):
        definitions.register(FactDefinition("sent", CODEC, send_item))
