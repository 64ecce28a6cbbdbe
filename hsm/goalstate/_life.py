"""The life of an entity in the store: what each event makes of its row. Nothing here reads or writes."""

from __future__ import annotations

from typing import Final

from hsm.engine._processes import is_gone
from hsm.goalstate._pauses import Verdict
from hsm.goalstate.errors import ClaimLostError
from persistence.goals import given_up_key, running_key, scheduled_key
from persistence.proto.execution_pb2 import MemberRow
from persistence.proto.goal_pb2 import GoalClaim, GoalDeath, GoalRow

__all__ = ["claimed", "deleted", "enqueued", "extended", "index_rows", "is_running", "settled", "unscheduled"]

_LOST: Final = "the process has ended during the run, or stood still for longer than its claim"


def index_rows(kind: str, id_: str, row: GoalRow | None) -> dict[str, bytes]:
    """The rows by which an entity is found, which follow from its own."""
    rows: dict[str, bytes] = {}
    if row is None:
        return rows
    if row.HasField("claim"):
        rows[running_key(kind, id_)] = row.claim.SerializeToString()
    elif row.due_nanos:
        rows[scheduled_key(row.due_nanos, kind, id_)] = b""
    if row.HasField("death"):
        rows[given_up_key(kind, id_)] = b""
    return rows


def is_running(claim: GoalClaim, now: int) -> bool:
    """Whether somebody may be at work under a claim."""
    return claim.until_nanos > now and not is_gone(claim.member)


def enqueued(row: GoalRow | None, due: int, goal: str | None, *, replace: bool) -> GoalRow:
    """It is to be evaluated at a time, and perhaps has another goal."""
    new = GoalRow()
    if row is not None and row.deleted:
        # Another entity, which must not run before the run of the old one has ended.
        new.fence = row.fence
        new.claim.CopyFrom(row.claim)
        new.claim.disowned = True
    elif row is not None:
        new.CopyFrom(row)
    if new.HasField("death"):
        new.ClearField("death")
        new.failures = new.tries = 0
    if goal is not None:
        new.goal = goal
    if replace or not new.due_nanos or due < new.due_nanos:
        new.due_nanos = max(due, 1)
    return new


def unscheduled(row: GoalRow) -> GoalRow:
    """It is not to be evaluated, until somebody asks for it."""
    new = GoalRow()
    new.CopyFrom(row)
    new.due_nanos = 0
    return new


def deleted(row: GoalRow, now: int) -> GoalRow | None:
    """It is to be forgotten; at once, unless it is run."""
    if not row.HasField("claim") or not is_running(row.claim, now):
        return None
    new = GoalRow(fence=row.fence, deleted=True)
    new.claim.CopyFrom(row.claim)
    return new


def claimed(row: GoalRow, now: int, until: int, member: MemberRow, most: int | None) -> GoalRow | None:
    """Somebody begins to run it; the same row, if it cannot be run now; None, if it is to be forgotten.

    A run whose process has ended without a word counts as a failure: it may be what has ended the process. So
    the new row may also say that the entity is given up.
    """
    if row.HasField("claim"):
        # Who asks does not run it: a claim of its own is one whose answer was lost.
        if is_running(row.claim, now) and row.claim.member != member:
            return row
        if row.deleted:
            return None
    elif not row.due_nanos or row.due_nanos > now:
        return row
    new = GoalRow()
    new.CopyFrom(row)
    if row.HasField("claim") and row.claim.member != member and not row.claim.disowned:
        new.failures, new.tries, new.last_error = row.failures + 1, row.tries + 1, _LOST
        if most is not None and new.failures >= most:
            _give_up(new, _LOST, now)
            if new.HasField("death"):
                new.ClearField("claim")
                return new
    new.due_nanos = 0
    new.fence += 1
    new.claim.CopyFrom(GoalClaim(until_nanos=until, member=member))
    return new


def _give_up(new: GoalRow, error: str, now: int) -> None:
    """It is dead, unless it was enqueued while it ran: what it has died of may be over."""
    if new.due_nanos:
        new.failures = new.tries = 0
    else:
        new.death.CopyFrom(GoalDeath(error=error, time_nanos=now, failures=new.failures))


def extended(row: GoalRow | None, fence: int, until: int) -> GoalRow:
    """The run takes longer than usual.

    Raises:
        ClaimLostError: somebody else runs it by now, or has.
    """
    new = GoalRow()
    new.CopyFrom(_own(row, fence))
    new.claim.until_nanos = max(until, new.claim.until_nanos)
    return new


def settled(
    row: GoalRow | None,
    fence: int,
    verdict: Verdict | None,
    due: int | None,
    *,
    failures: int,
    tries: int,
    error: str,
    now: int,
) -> GoalRow | None:
    """A run has ended.

    Args:
        row: as it is now.
        fence: of the run.
        verdict: None if the run was broken off.
        due: when it is to be run again, as far as the run knows.
        failures: in a row by now.
        tries: likewise.
        error: what the run has met.
        now: the time.

    Raises:
        ClaimLostError: somebody else runs it by now, or has.
    """
    own = _own(row, fence)
    if own.deleted:
        return None
    new = GoalRow()
    new.CopyFrom(own)
    new.ClearField("claim")
    if own.claim.disowned:
        return new
    asked = own.due_nanos
    if due is not None:
        new.due_nanos = min(due, asked) if asked else due
    if verdict is None:
        return new
    new.failures, new.tries, new.last_error = failures, tries, error
    if verdict is Verdict.GONE and not asked:
        return None
    if verdict is Verdict.DEAD:
        _give_up(new, error, now)
    return new


def _own(row: GoalRow | None, fence: int) -> GoalRow:
    if row is None or not row.HasField("claim") or row.fence != fence:
        raise ClaimLostError("the run has taken longer than its claim, and somebody else has run the entity")
    return row
