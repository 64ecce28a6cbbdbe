"""The tables: they must be ours and not from the future; anything else is left as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from persistence.errors import StoreBusyError, StoreCorruptError
from persistence.migrations import Migration, SchemaVersion, missing_migrations
from persistence.stores.mariadb.driver import Session
from persistence.stores.mariadb.settings import MariaDBOptions, whole_seconds
from persistence.stores.mariadb.sql import COMMENT, TABLES, Statements

__all__ = ["prepare_schema"]

_ENGINE: Final = "InnoDB"


async def prepare_schema(
    session: Session,
    statements: Statements,
    known: Sequence[Migration],
    options: MariaDBOptions,
    where: str,
) -> None:
    """Make the tables, or bring them up to date; several processes may do so at once.

    Raises:
        StoreCorruptError: tables of our names are somebody else's, or too new.
        StoreUnavailableError: there is nothing, or an older version, and the options say that nothing shall
            be made.
        ServerError: the server refused a statement.
        ConnectionLostError: it is gone.
    """
    found = await _find_version(session, statements, where)
    place = f"{where} with the prefix {options.prefix!r}"
    if not missing_migrations(known, found, place, create=options.create):
        return
    # The server ends a definition of tables with a commit, so a transaction protects nothing here.
    wait_seconds = whole_seconds(options.connect_timeout)
    (answer,) = await session.run(statements.take_schema_lock(wait_seconds))
    if answer.rows[0][0] != 1:
        raise StoreBusyError(f"somebody else has been changing the tables in {where} for {wait_seconds} s")
    try:
        found = await _find_version(session, statements, where)
        for migration in missing_migrations(known, found, place, create=True):
            for statement in migration.statements:
                await session.run(statement)
            await session.run(statements.set_version(migration.version, migration.oldest))
        # What the server was told about the engine, it may have forbidden itself.
        await _find_version(session, statements, where)
    finally:
        if not session.closed:
            await session.run(statements.release_schema_lock)


async def _find_version(session: Session, statements: Statements, where: str) -> SchemaVersion:
    """The version of the tables; 0 if they are not there, or not all yet."""
    if not await _find_tables(session, statements, where):
        return SchemaVersion()
    (answer,) = await session.run(statements.version)
    numbers: dict[str, int] = dict(answer.rows)
    found = SchemaVersion(numbers.get("version", 0), numbers.get("oldest", 0))
    # Once more, because they may have been made a moment ago.
    if found.version and await _find_tables(session, statements, where) < len(TABLES):
        raise StoreCorruptError(f"some of the tables in {where} are gone")
    return found


async def _find_tables(session: Session, statements: Statements, where: str) -> int:
    """How many of our tables there are."""
    (answer,) = await session.run(statements.tables)
    for name, comment, engine in answer.rows:
        if comment != COMMENT:
            raise StoreCorruptError(f"table {name} in {where} belongs to another application")
        if engine != _ENGINE:
            raise StoreCorruptError(f"table {name} in {where} is of engine {engine}, not {_ENGINE}")
    return len(answer.rows)
