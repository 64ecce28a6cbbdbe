"""Policies: what a start does where there is an execution with the same id already."""

from __future__ import annotations

import enum

__all__ = ["ConflictPolicy", "ReusePolicy"]


class ConflictPolicy(enum.Enum):
    """What a start does while another run of the same id is running.

    Semantics: Temporal CHASM's business id conflict policy.
    """

    FAIL = "fail"
    USE_EXISTING = "use existing"
    TERMINATE_EXISTING = "terminate existing"


class ReusePolicy(enum.Enum):
    """Whether an id may be used again once its last run is closed. A terminated run has failed.

    Semantics: Temporal CHASM's business id reuse policy.
    """

    REJECT = "reject"
    ALLOW = "allow"
    ALLOW_IF_FAILED = "allow if failed"
