"""What a commit expects of the history: a version, or nothing."""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

from persistence.journal.ids import EventId

__all__ = ["NO_VC", "RETRY_NO_VC", "Expectation", "VersionControl"]


class VersionControl(enum.Enum):
    """The types of `NO_VC` and `RETRY_NO_VC`; members, so that no id a client sends can mean one of them."""

    NO_VC = "no-vc"
    RETRY_NO_VC = "retry-no-vc"


NO_VC: Final = VersionControl.NO_VC
"""Whatever the version is, in one try: a commit of somebody else at the same time is still a conflict."""

RETRY_NO_VC: Final = VersionControl.RETRY_NO_VC
"""Whatever the version is, with up to six tries against others that commit at the same time."""

Expectation: TypeAlias = EventId | VersionControl
"""A version that a history must have (`EPOCH`: it must be empty), or `NO_VC`, or `RETRY_NO_VC`."""
