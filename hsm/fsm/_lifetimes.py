"""Times to live: an event is not remembered any longer than what became of it."""

from __future__ import annotations

from datetime import timedelta

from hsm.fsm.keys import NEVER_EXPIRE

__all__ = ["ttl_of_event"]


def ttl_of_event(event_ttl: timedelta, outcome_ttl: timedelta) -> timedelta:
    """How long an event is kept that has its outcome, if both are asked for.

    One that outlived its outcome would be taken for pending.
    """
    if outcome_ttl == NEVER_EXPIRE:
        return event_ttl
    return outcome_ttl if event_ttl == NEVER_EXPIRE else min(event_ttl, outcome_ttl)
