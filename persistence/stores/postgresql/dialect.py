"""Servers that speak PostgreSQL's protocol without being PostgreSQL.

Only PostgreSQL itself is tested. CockroachDB and YugabyteDB have no advisory locks that can be relied on:
there transactions are SERIALIZABLE, and are tried again when the server says so. That path has never met such
a server; it is an attempt.
"""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["DISTRIBUTED", "POSTGRESQL", "Dialect", "dialect_of"]


@attrs.frozen
class Dialect:
    """What a server has in common with PostgreSQL, and what not.

    Attributes:
        begin: begins a transaction that writes.
        locks: partitions are locked by advisory locks; else the isolation level has to do.
        plain: statements do without PostgreSQL's physical row addresses, planner settings and statistics.
        outcomes: the server tells what became of a transaction.
        notifies: LISTEN and NOTIFY work.
    """

    begin: bytes
    locks: bool
    plain: bool
    outcomes: bool
    notifies: bool


POSTGRESQL: Final = Dialect(
    # Said in full, because the defaults of a server or a role may be others: with a snapshot from before the
    # lock, the reads after it would be stale.
    begin=b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    locks=True,
    plain=False,
    outcomes=True,
    notifies=True,
)
DISTRIBUTED: Final = Dialect(
    begin=b"BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
    locks=False,
    plain=True,
    outcomes=False,
    notifies=False,
)


def dialect_of(version: str) -> Dialect:
    """The dialect of a server, by what `version()` says."""
    return DISTRIBUTED if "CockroachDB" in version or "-YB-" in version else POSTGRESQL
