"""Errors of the goal-state engine."""

from __future__ import annotations

from hsm.errors import HSMError, TerminalError

__all__ = ["ClaimLostError", "EntityNotFoundError", "InvalidTableError", "UnreachableGoalError"]


class EntityNotFoundError(HSMError):
    """A loader's word that there is no such entity any more: the engine forgets it."""


class InvalidTableError(HSMError):
    """A table of actions says nothing, or two things, about some pair of state and goal."""


class UnreachableGoalError(TerminalError):
    """No path leads from the state to the goal; the message says why."""


class ClaimLostError(HSMError):
    """Somebody else has run the entity meanwhile: this run has taken longer than its claim."""
