"""Kinds of entities: how one is brought back after a restart, and what its goals are called."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import attrs

from hsm.errors import SerializationError
from hsm.goalstate.entity import AnyEntity

__all__ = ["EntityKind"]

GoalT = TypeVar("GoalT", bound=enum.Enum)


@attrs.frozen
class EntityKind(Generic[GoalT]):
    """A kind of entities of a durable engine.

    Attributes:
        name: stored: never change or reuse it.
        load: the entity of an id, before each run. May be a coroutine function. `EntityNotFoundError` says
            that there is none any more, and the engine forgets it.
        goals: an enum of the goals, if the engine is to keep them; their names are stored.
    """

    name: str = attrs.field(validator=attrs.validators.min_len(1))
    load: Callable[[str], AnyEntity | Awaitable[AnyEntity]]
    goals: type[GoalT] | None = None

    def decode(self, goal: str) -> GoalT:
        """The goal of a stored name.

        Raises:
            SerializationError: there is no such goal.
        """
        if self.goals is None or goal not in self.goals.__members__:
            raise SerializationError(f"{goal!r} is no goal of the kind {self.name!r}")
        return self.goals[goal]
