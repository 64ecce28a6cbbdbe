"""The statements for one schema, from the .sql files beside this module."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from persistence.migrations import Migration
from persistence.paging import Window
from persistence.statements import named_statements, script
from persistence.stores.postgresql.dialect import Dialect

__all__ = ["Statements", "migrations"]

_PACKAGE: Final = "persistence.stores.postgresql"
_QUERIES: Final = named_statements(_PACKAGE, "queries.sql")
_MIGRATIONS: Final = (Migration(1, script(_PACKAGE, "migrations/0001.sql"), oldest=1),)


def _quoted(identifier: str) -> str:
    # Percent signs doubled, because one announces a parameter.
    return '"' + identifier.replace('"', '""').replace("%", "%%") + '"'


def migrations(schema: str) -> Sequence[Migration]:
    """All migrations, for one schema."""
    name = _quoted(schema)
    return [
        migration._replace(
            statements=[statement.replace("{schema}", name) for statement in migration.statements]
        )
        for migration in _MIGRATIONS
    ]


class Statements:
    """The statements by name, with the schema filled in; as bytes, which is what psycopg takes unseen."""

    def __init__(self, schema: str, dialect: Dialect) -> None:
        self._schema = _quoted(schema)
        self._texts = dict(_QUERIES)
        if dialect.plain:
            plain = {key for key in self._texts if key.endswith("-plain")}
            self._texts |= {key.removesuffix("-plain"): self._texts[key] for key in plain}
        self._encoded = {key: self._complete(text) for key, text in self._texts.items()}
        self._cached_window = functools.cache(self._windowed)

    def __getitem__(self, name: str) -> bytes:
        return self._encoded[name]

    def _complete(self, text: str) -> bytes:
        # Last, because the name of a schema may look like something else that is filled in.
        return text.replace("{schema}", self._schema).encode()

    def _windowed(self, name: str, reverse: bool, after: bool, bounded: bool) -> bytes:
        """The statement for windows of one shape; a window without an end has one parameter less."""
        return self._complete(
            self._texts[name]
            .replace("{order}", "DESC" if reverse else "ASC")
            .replace("{above}", ">" if after else ">=")
            .replace("{below}", "AND k < %b" if bounded else "")
        )

    def window(self, name: str, window: Window) -> tuple[bytes, tuple[str, ...]]:
        """The statement for a window, and its parameters up to the number of rows."""
        statement = self._cached_window(name, window.reverse, window.after, bool(window.end))
        if window.end:
            return statement, (window.partition, window.start, window.end)
        return statement, (window.partition, window.start)
