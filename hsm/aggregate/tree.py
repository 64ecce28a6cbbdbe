"""Events and trees: how what is in a history moves the machines of a tree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final, Generic, Protocol, TypeVar

import attrs

from hsm.aggregate.behavior import Event
from hsm.aggregate.codec import EventCodec, type_name
from hsm.aggregate.errors import EventRegistrationError, NotCherryPickableError, UnknownEventTypeError
from hsm.errors import HSMError, InvalidTransitionError, StateMachineNotFoundError
from hsm.registry import Registry
from hsm.tree import Node
from persistence.journal import Event as JournalEvent, EventId

__all__ = ["CherryPicked", "EventDefinition", "EventDefinitions", "FactDefinition"]

FactT = TypeVar("FactT")

_SKIPPED: Final = (NotCherryPickableError, StateMachineNotFoundError, InvalidTransitionError)


class EventDefinition(Protocol):
    """What events of one type do to a tree.

    Semantics: Temporal `hsm.EventDefinition` (v1.24).
    """

    @property
    def type(self) -> str:
        """The name under which events are stored; of an event of the schema, the name in the schema."""
        ...

    @property
    def is_workflow_task_trigger(self) -> bool:
        """Whether whoever drives the tree has to look at it when such an event has come."""
        ...

    def apply(self, root: Node, event: JournalEvent, /) -> None:
        """Do to the tree what the event tells, as when it was written. It cannot be refused any more."""
        ...

    def cherry_pick(self, root: Node, event: JournalEvent, excluded: Collection[str], /) -> None:
        """Do the same to a tree that has taken another course.

        Args:
            root: of the tree.
            event: written for another course.
            excluded: what the caller does not want to have picked, by names of types.

        Raises:
            NotCherryPickableError: the event has nothing to say here. It is skipped, as it is after
                `StateMachineNotFoundError` and `InvalidTransitionError`.
        """
        ...


@attrs.frozen
class CherryPicked:
    """What has become of events that were picked.

    Attributes:
        applied: ids of those that were applied.
        skipped: ids of those that were not, with the reason.
    """

    applied: tuple[EventId, ...]
    skipped: tuple[tuple[EventId, HSMError], ...]


class FactDefinition(Generic[FactT]):
    """A definition of events by what they tell.

    `apply` gets the root and the fact. An event can be picked if `cherry_pickable`, or if the function
    `cherry_pick` says what to do then.
    """

    def __init__(
        self,
        type: str,  # noqa: A002  the property's name
        codec: EventCodec[FactT],
        apply: Callable[[Node, Event[FactT]], object],
        *,
        cherry_pickable: bool = False,
        cherry_pick: Callable[[Node, Event[FactT]], object] | None = None,
        is_workflow_task_trigger: bool = False,
    ) -> None:
        """Define what events of `type` do, which `codec` can read."""
        self._type = type
        self._codec = codec
        self._apply = apply
        self._cherry_pick = apply if cherry_pickable and cherry_pick is None else cherry_pick
        self._is_trigger = is_workflow_task_trigger

    @property
    def type(self) -> str:
        """See `EventDefinition`."""
        return self._type

    @property
    def is_workflow_task_trigger(self) -> bool:
        """See `EventDefinition`."""
        return self._is_trigger

    def apply(self, root: Node, event: JournalEvent, /) -> None:
        """See `EventDefinition`."""
        self._apply(root, self._read(event))

    def cherry_pick(self, root: Node, event: JournalEvent, excluded: Collection[str], /) -> None:
        """See `EventDefinition`."""
        if self._cherry_pick is None or self._type in excluded:
            raise NotCherryPickableError(f"event {event.id} of type {self._type!r} is not picked")
        self._cherry_pick(root, self._read(event))

    def _read(self, event: JournalEvent) -> Event[FactT]:
        return Event(event.id, self._codec.decode(event.message()))


class EventDefinitions:
    """The definitions of the events that a program knows, by type. Filled once at start-up."""

    def __init__(self, definitions: Iterable[EventDefinition] = ()) -> None:
        """Know these definitions, to begin with."""
        self._definitions: dict[str, EventDefinition] = {}
        for definition in definitions:
            self.register(definition)

    def register(self, definition: EventDefinition) -> None:
        """Make a type of event known.

        Raises:
            EventRegistrationError: it is known already.
        """
        if definition.type in self._definitions:
            raise EventRegistrationError(f"event {definition.type!r} is defined already")
        self._definitions[definition.type] = definition

    def definition(self, event: JournalEvent) -> EventDefinition:
        """The definition of an event.

        Raises:
            UnknownEventTypeError: there is none.
        """
        name = type_name(event.message())
        definition = self._definitions.get(name)
        if definition is None:
            raise UnknownEventTypeError(name)
        return definition

    def replay(self, root: Node, events: Iterable[JournalEvent]) -> bool:
        """Apply events to a tree, all of them or none; whether one of them is a workflow task trigger.

        Raises:
            UnknownEventTypeError: an event is not defined.
        """
        triggered = False
        with root.savepoint():
            for event in events:
                definition = self.definition(event)
                definition.apply(root, event)
                triggered = triggered or definition.is_workflow_task_trigger
        return triggered

    def rebuild(self, registry: Registry, type_id: int, data: object, events: Iterable[JournalEvent]) -> Node:
        """A new tree whose root holds `data`, moved on by events.

        Raises:
            UnknownEventTypeError: an event is not defined.
            NotRegisteredError: the machine type is not registered.
        """
        root = Node.new_root(registry, type_id, data)
        self.replay(root, events)
        return root

    def cherry_pick(
        self, root: Node, events: Iterable[JournalEvent], *, excluded: Collection[str] = ()
    ) -> CherryPicked:
        """Apply those events to a tree that still make sense there; each of them wholly or not at all.

        An event is skipped if it is not defined, if its definition says so (`NotCherryPickableError`), if its
        machine is not there (`StateMachineNotFoundError`), or not in a state for it
        (`InvalidTransitionError`). Any other error undoes everything.
        """
        applied: list[EventId] = []
        skipped: list[tuple[EventId, HSMError]] = []
        with root.savepoint():
            for event in events:
                try:
                    definition = self.definition(event)
                except UnknownEventTypeError as error:
                    skipped.append((event.id, error))
                    continue
                try:
                    with root.savepoint():
                        definition.cherry_pick(root, event, excluded)
                except _SKIPPED as error:
                    skipped.append((event.id, error))
                else:
                    applied.append(event.id)
        return CherryPicked(tuple(applied), tuple(skipped))
