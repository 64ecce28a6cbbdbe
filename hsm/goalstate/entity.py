"""Entities: things that have a state and a goal, and the actions that bring one to the other."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import attrs

__all__ = ["Action", "ActionList", "AnyEntity", "Entity", "Run", "Standing"]

StateT = TypeVar("StateT")
GoalT = TypeVar("GoalT")
EntityT_contra = TypeVar("EntityT_contra", contravariant=True)

_NOW = timedelta()


class Standing(NamedTuple, Generic[StateT, GoalT]):
    """Where an entity is and where it should be, both of the same moment."""

    state: StateT
    goal: GoalT


class Run:
    """One evaluation of one entity, as its actions see it. May be used from any thread.

    Attributes:
        entity_id: of the entity.
        attempt: number of the evaluation, from 1, since the last one that did not fail.
        fence: grows with each run of the entity in durable mode, in whatever process; 0 elsewhere. A system
            that remembers the highest one it has seen can refuse a run that was overtaken.
    """

    __slots__ = ("_again_ns", "_clock", "_rest_skipped", "attempt", "entity_id", "fence")

    def __init__(
        self, entity_id: str, clock: Callable[[], datetime], attempt: int = 1, fence: int = 0
    ) -> None:
        self.entity_id: str = entity_id
        self.attempt: int = attempt
        self.fence: int = fence
        self._clock = clock
        self._again_ns: timedelta | None = None
        self._rest_skipped = False

    def now(self) -> datetime:
        """The time, by the engine's clock."""
        return self._clock()

    def again(self, after: timedelta = _NOW) -> None:
        """Evaluate the entity once more, a while after this run; the earliest such wish counts."""
        self._again_ns = after if self._again_ns is None else min(self._again_ns, after)

    def skip_rest(self) -> None:
        """Leave out the actions that follow. That is no failure."""
        self._rest_skipped = True

    @property
    def wanted_again(self) -> timedelta | None:
        """What `again` was given; None if it was not called."""
        return self._again_ns

    @property
    def rest_skipped(self) -> bool:
        """Whether `skip_rest` was called."""
        return self._rest_skipped


@attrs.frozen
class Action(Generic[EntityT_contra]):
    """One step on the way to a goal. It must be idempotent: after a failure the list begins anew.

    `execute` is a coroutine function, or a plain function, which is called in a thread and may block. A
    thread cannot be cancelled: an entity whose action outlasts its time is not run again before it ends.

    Attributes:
        name: for people and metrics; few different ones.
        execute: does it; what it raises is a failure, and `hsm.errors` says which kind.
        timeout: how long it may take; None is as long as the list may.
        asynchronous: whether `execute` is a coroutine function.
    """

    name: str = attrs.field(validator=attrs.validators.min_len(1))
    execute: Callable[[EntityT_contra, Run], Awaitable[None] | None] = attrs.field(
        validator=attrs.validators.is_callable()
    )
    timeout: timedelta | None = None
    asynchronous: bool = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        """Look at `execute` once, not at every run."""
        object.__setattr__(self, "asynchronous", _is_asynchronous(self.execute))


def _is_asynchronous(function: object) -> bool:
    if inspect.iscoroutinefunction(function):
        return True
    # An object whose call is a coroutine function is one, too.
    return inspect.iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004


@attrs.frozen
class ActionList(Generic[EntityT_contra]):
    """What to do for an entity in one state with one goal: actions, in order, until one fails.

    Attributes:
        actions: may be empty: there is nothing to do.
        timeout: how long they may take together; None is as long as the engine's options say.
        on_done: called afterwards, whatever has happened. What it raises is logged, and changes nothing.
    """

    actions: Sequence[Action[EntityT_contra]] = ()
    timeout: timedelta | None = None
    on_done: Callable[[], None] | None = None


class Entity(Protocol[StateT, GoalT]):
    """A thing that an engine brings to its goal. Usually a handle without a state of its own.

    Semantics: Peloton goal-state engine (2019), except that state and goal are read together.
    """

    @property
    def id(self) -> str:
        """Unique within the engine."""
        ...

    def read(self) -> Standing[StateT, GoalT] | Awaitable[Standing[StateT, GoalT]]:
        """State and goal of one moment, as they are now. May be a coroutine function; must not block."""
        ...

    def action_list(self, state: StateT, goal: GoalT, /) -> ActionList[Self]:
        """What to do in this state with this goal."""
        ...


AnyEntity: TypeAlias = Entity[Any, Any]
"""An entity of some kind: an engine holds entities of several kinds, and passes on what it reads."""
