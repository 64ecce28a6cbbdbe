"""Transitions: from which states, to which state, and what happens on the way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import attrs

from hsm.errors import InvalidTransitionError
from hsm.machine import HasState
from hsm.task import Task

__all__ = ["Mover", "Transition", "TransitionOutput", "transitions"]

StateT = TypeVar("StateT", bound=Hashable)
MachineT = TypeVar("MachineT", bound=HasState[Any])
MachineT_co = TypeVar("MachineT_co", bound=HasState[Any], covariant=True)
EventT = TypeVar("EventT")


@attrs.frozen
class TransitionOutput:
    """What one transition leaves behind: tasks, committed with the new state or not at all."""

    tasks: tuple[Task, ...] = ()


NO_OUTPUT: Final = TransitionOutput()

ApplyFunction: TypeAlias = Callable[[MachineT, EventT], TransitionOutput | None]


class Transition(Generic[StateT, MachineT, EventT]):
    """A move of a machine from one of `sources` to `destination` on an event.

    The state is set before the function runs, so that it sees the machine where it is going; if it
    raises, the state is put back. A transition object holds no state of its own and can be shared by any
    number of machines.

    Semantics: Temporal `hsm.Transition` (v1.24), except that the state is restored on error.

    Attributes:
        sources: states the machine may be in.
        destination: the state it is in afterwards.
        machine: class of the machine's data, where it is known.
        name: for people.
    """

    __slots__ = ("_apply", "destination", "machine", "name", "sources")

    def __init__(
        self,
        sources: Iterable[StateT],
        destination: StateT,
        apply: ApplyFunction[MachineT, EventT],
        *,
        machine: type[MachineT] | None = None,
        name: str = "",
    ) -> None:
        if isinstance(sources, str):
            # Text is a collection of letters, to type checkers too.
            raise TypeError(f"the sources of a transition are a list of states: [{sources!r}]")
        self.sources: frozenset[StateT] = frozenset(sources)
        self.destination: StateT = destination
        self.machine: type[MachineT] | None = machine
        self.name: str = name or getattr(apply, "__name__", "")
        self._apply = apply

    def __repr__(self) -> str:
        sources = ", ".join(sorted(map(str, self.sources)))
        return f"<Transition {self.name!r} from {{{sources}}} to {self.destination}>"

    def possible(self, machine: MachineT) -> bool:
        """Whether the machine is in one of the source states."""
        return machine.state in self.sources

    def apply(self, machine: MachineT, event: EventT) -> TransitionOutput:
        """Move the machine and return the tasks that the move asks for.

        Raises:
            InvalidTransitionError: the machine is in no source state; nothing was changed.
        """
        state = machine.state
        if state not in self.sources:
            raise InvalidTransitionError(
                f"{self.name or 'transition'} to {self.destination} is not possible from {state}"
                f" (event {type(event).__name__})"
            )
        machine.state = self.destination
        try:
            return self._apply(machine, event) or NO_OUTPUT
        except BaseException:
            machine.state = state
            raise


class Mover(Generic[StateT, MachineT]):
    """A decorator that makes a function the move from given states to a given state."""

    __slots__ = ("_destination", "_machine", "_sources")

    def __init__(self, machine: type[MachineT], sources: Iterable[StateT], destination: StateT) -> None:
        self._machine = machine
        self._sources = sources
        self._destination = destination

    def __call__(self, function: ApplyFunction[MachineT, EventT]) -> Transition[StateT, MachineT, EventT]:
        """The transition that runs `function`."""
        return Transition(self._sources, self._destination, function, machine=self._machine)


class transitions(Generic[MachineT_co]):  # noqa: N801 - reads as a word: `order = transitions(Order)`
    """The usual way to write the transitions of one type of machine.

    ```
    order = transitions(Order)

    @order.move([State.NEW], State.PAID)
    def pay(order: Order, event: Payment) -> TransitionOutput: ...

    ship = order.change([State.PAID], State.SHIPPED)
    ```
    """

    __slots__ = ("_machine",)

    def __init__(self, machine: type[MachineT_co]) -> None:
        self._machine = machine

    def move(
        self: transitions[HasState[StateT]], sources: Iterable[StateT], destination: StateT
    ) -> Mover[StateT, MachineT_co]:
        """A decorator for the function that runs on the way from `sources` to `destination`."""
        # `self` is annotated for the sake of StateT, which hides that its machine is MachineT_co.
        machine = cast("type[MachineT_co]", self._machine)
        return Mover(machine, sources, destination)

    def change(
        self: transitions[HasState[StateT]],
        sources: Iterable[StateT],
        destination: StateT,
        *,
        name: str = "change",
    ) -> Transition[StateT, MachineT_co, None]:
        """The transition that only changes the state. Its event is None. `name` is for people."""
        # As in `move`.
        machine = cast("type[MachineT_co]", self._machine)
        return Transition(sources, destination, _nothing_more, machine=machine, name=name)


def _nothing_more(_: object, __: None) -> None:
    """What a transition does that changes the state and nothing else."""
