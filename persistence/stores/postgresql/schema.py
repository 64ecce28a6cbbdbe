"""The schema of a store: looked at without touching it, made or brought up to date if there is need."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

import psycopg

from persistence.errors import StoreCorruptError, StoreUnavailableError
from persistence.migrations import Migration, SchemaVersion, missing_migrations
from persistence.stores.postgresql.dialect import Dialect
from persistence.stores.postgresql.locks import lock_id
from persistence.stores.postgresql.packing import Bigints, Texts
from persistence.stores.postgresql.session import Session
from persistence.stores.postgresql.sql import Statements, migrations

__all__ = ["ensure_schema"]

_APPLICATION: Final = "hsm-toolkit"
_META_COLUMNS: Final = ["name", "value"]
_TABLES: Final = ("kv", "meta", "watchers", "epoch")


async def ensure_schema(
    session: Session, schema: str, dialect: Dialect, *, create: bool, deadline: float
) -> None:
    """Bring the schema to the version that this release needs; nothing is written if it is there already.

    Raises:
        StoreCorruptError: tables of these names are not ours, or too new; they were left as they were.
        StoreUnavailableError: something is missing, and `create` or the rights of the role forbid to make it.
    """
    where = f"schema {schema!r} of {session.where}"
    try:
        with session.until(deadline):
            await _ensure(session, schema, dialect, where, create=create)
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreUnavailableError(f"the role may not make or use the tables of {where}: {error}") from error
    except psycopg.Error as error:
        raise session.failure(error) from error


async def _ensure(session: Session, schema: str, dialect: Dialect, where: str, *, create: bool) -> None:
    sql = Statements(schema, dialect)
    known = migrations(schema)
    found = await _version(session, sql, schema, where)
    if missing_migrations(known, found, where, create=create):
        await _migrate(session, sql, schema, known, dialect, where)


async def _version(session: Session, sql: Statements, schema: str, where: str) -> SchemaVersion:
    tables = {name for (name,) in await session.rows(sql["tables"], (schema, Texts(_TABLES)))}
    if not tables:
        return SchemaVersion()
    if "meta" in tables:
        columns = [name for (name,) in await session.rows(sql["meta-columns"], (schema,))]
        if columns[: len(_META_COLUMNS)] == _META_COLUMNS:
            names = Texts(("application", "version", "oldest"))
            meta: Mapping[str, str] = dict(await session.rows(sql["meta"], (names,)))
            if meta.get("application") == _APPLICATION:
                return _read_version(meta, where)
    raise StoreCorruptError(f"{where} has tables of another application: {', '.join(sorted(tables))}")


def _read_version(meta: Mapping[str, str], where: str) -> SchemaVersion:
    try:
        return SchemaVersion(int(meta["version"]), int(meta["oldest"]))
    except (KeyError, ValueError) as error:
        raise StoreCorruptError(f"the version of {where} is damaged: {dict(meta)!r}") from error


async def _migrate(
    session: Session, sql: Statements, schema: str, known: Sequence[Migration], dialect: Dialect, where: str
) -> None:
    await session.transact(*session.opening)
    try:
        if dialect.locks:
            await session.rows(sql["lock"], (Bigints([lock_id(schema, "", "")]),))
        # Somebody else may have been faster.
        found = await _version(session, sql, schema, where)
        missing = missing_migrations(known, found, where, create=True)
        if missing:
            # Asked first, because IF NOT EXISTS wants the right to create even where there is nothing to do.
            if not await session.rows(sql["has-schema"], (schema,)):
                await session.rows(sql["create-schema"])
            for migration in missing:
                for statement in migration.statements:
                    await session.rows(statement.encode())
            meta = {
                "application": _APPLICATION,
                "version": str(missing[-1].version),
                "oldest": str(missing[-1].oldest),
            }
            await session.rows(sql["set-meta"], (Texts(meta), Texts(meta.values())))
        await session.rows(b"COMMIT")
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            await session.rows(b"ROLLBACK")
        raise
