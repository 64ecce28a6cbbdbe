"""The schema of a database and its versions: old and new releases work on one database side by side.

A migration only adds what older code does not notice (a table, a column with a default, an index). One that
older code would not survive raises `oldest`, and comes a release after the code that can do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from persistence.errors import StoreCorruptError, StoreUnavailableError

__all__ = ["Migration", "SchemaVersion", "missing_migrations"]


class Migration(NamedTuple):
    """One step of a schema.

    Attributes:
        version: the schema's version afterwards; the first one is 1.
        statements: what to run, in order.
        oldest: the oldest schema version whose code still works on the new one.
    """

    version: int
    statements: Sequence[str]
    oldest: int


class SchemaVersion(NamedTuple):
    """What a database says of its schema; both are 0 if there is none."""

    version: int = 0
    oldest: int = 0


def missing_migrations(
    known: Sequence[Migration], found: SchemaVersion, where: str, *, create: bool
) -> Sequence[Migration]:
    """The migrations that a database still needs; none if it is newer, but works with this release.

    Raises:
        StoreCorruptError: a newer release has changed it so that this one must not touch it.
        StoreUnavailableError: it needs some, and without `create` nothing is to be made or changed.
    """
    newest = known[-1].version
    if found.oldest > newest:
        raise StoreCorruptError(
            f"{where} has schema version {found.version}, which needs a release that knows version"
            f" {found.oldest}; this one knows versions up to {newest}"
        )
    missing = [migration for migration in known if migration.version > found.version]
    if missing and not create:
        if not found.version:
            raise StoreUnavailableError(f"there is no store in {where}")
        raise StoreUnavailableError(
            f"{where} has the older version {found.version}, and create=false forbids to change it"
        )
    return missing
