"""What became of a transaction whose connection was lost during the commit: asked, never guessed.

The server keeps the outcome of recent transactions by number. But a number that was given out shortly before
a crash may be given out again afterwards, and after a failover the numbers are another server's. The row of
the unlogged table `epoch` is gone after both, so that the number counts as long as that row is the same. If
it is not, the rows that were to be written have to tell: an etag is never given out twice.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs
import psycopg

from persistence.decision import Slot
from persistence.stores.postgresql.packing import Texts
from persistence.stores.postgresql.session import Session
from persistence.stores.postgresql.sql import Statements

__all__ = ["Evidence", "Outcome", "ask_outcome", "read_epoch"]


class Outcome(enum.Enum):
    """What a transaction has come to."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    RUNNING = "running"
    UNKNOWN = "unknown"


async def read_epoch(session: Session, sql: Statements, token: str) -> str:
    """The token of the server's present life; `token` is it if there is none yet."""
    found = await session.rows(sql["epoch"])
    if not found:
        await session.rows(sql["new-epoch"], (token,))
        found = await session.rows(sql["epoch"])
    ((epoch,),) = found
    return str(epoch)


@attrs.frozen
class Evidence:
    """What may be left of a transaction.

    Attributes:
        transaction: its number, None if the server has none.
        after: etags that only this transaction writes.
        before: etags of rows that it replaces or deletes.
    """

    transaction: str | None
    after: Mapping[Slot, str]
    before: Mapping[Slot, str]


async def ask_outcome(session: Session, sql: Statements, evidence: Evidence, *, same_epoch: bool) -> Outcome:
    """What became of a transaction, asked on a new connection.

    `same_epoch`: since it began, the server has neither crashed nor been replaced.
    """
    if evidence.transaction is None:
        # It may still be running, so that only a sign of its success counts.
        after = await _any(session, sql, evidence.after)
        return Outcome.COMMITTED if after else Outcome.UNKNOWN
    status = await _status(session, sql, evidence.transaction)
    if same_epoch:
        return status
    # Had it been committed before the crash, its number could not have been given out to one that was not.
    if status is Outcome.ROLLED_BACK or await _any(session, sql, evidence.before):
        return Outcome.ROLLED_BACK
    return Outcome.COMMITTED if await _any(session, sql, evidence.after) else Outcome.UNKNOWN


async def _status(session: Session, sql: Statements, transaction: str) -> Outcome:
    try:
        ((status,),) = await session.rows(sql["status"], (transaction,))
    except psycopg.errors.InvalidParameterValue:
        # "is in the future": forgotten in a crash, which a commit would not have been.
        return Outcome.ROLLED_BACK
    return {
        "committed": Outcome.COMMITTED,
        "aborted": Outcome.ROLLED_BACK,
        "in progress": Outcome.RUNNING,
    }.get(status, Outcome.UNKNOWN)


async def _any(session: Session, sql: Statements, etags: Mapping[Slot, str]) -> bool:
    """Whether a row has the etag that is given for it."""
    slots = (Texts([partition for partition, _ in etags]), Texts([key for _, key in etags]))
    found = {etag for (etag,) in await session.rows(sql["etags"], slots)}
    return not found.isdisjoint(etags.values())
