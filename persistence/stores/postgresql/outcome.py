"""What became of a transaction whose connection was lost during the commit: asked, never guessed.

The server keeps the outcome of recent transactions by number. But a number that was given out shortly before
a crash may be given out again afterwards, and after a failover the numbers are another server's. The row of
the unlogged table `epoch` is gone after both, so that the number counts as long as that row is the same. If
it is not, only an etag of the transaction's own proves that it took place.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import psycopg

from persistence.decision import Slot
from persistence.stores.postgresql.packing import Texts
from persistence.stores.postgresql.session import Session
from persistence.stores.postgresql.sql import Statements

__all__ = ["Outcome", "ask_outcome", "read_epoch"]


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


async def ask_outcome(
    session: Session,
    sql: Statements,
    transaction: str | None,
    marks: Mapping[Slot, str],
    *,
    same_epoch: bool,
) -> Outcome:
    """What became of a transaction.

    Args:
        session: a new connection.
        sql: the statements.
        transaction: its number, None if the server has none.
        marks: etags that only this transaction writes.
        same_epoch: since it began the server has neither crashed nor changed.
    """
    status = await _status(session, sql, transaction) if transaction is not None else Outcome.UNKNOWN
    if same_epoch:
        return status
    # Rolled back: had it been ours that was committed, its number could not have been given out again.
    if status is Outcome.ROLLED_BACK:
        return status
    if marks and await _any_mark(session, sql, marks):
        return Outcome.COMMITTED
    return Outcome.UNKNOWN


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


async def _any_mark(session: Session, sql: Statements, marks: Mapping[Slot, str]) -> bool:
    slots = (Texts([partition for partition, _ in marks]), Texts([key for _, key in marks]))
    found = {etag for (etag,) in await session.rows(sql["etags"], slots)}
    return not found.isdisjoint(marks.values())
