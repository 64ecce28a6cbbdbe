from __future__ import annotations

import pytest

from persistence import StoreCorruptError
from persistence.migrations import Migration, SchemaVersion, missing_migrations

FIRST = Migration(1, ("create",), oldest=1)
ADDS_A_COLUMN = Migration(2, ("alter",), oldest=1)
DROPS_A_COLUMN = Migration(3, ("drop",), oldest=2)
KNOWN = (FIRST, ADDS_A_COLUMN)


def test_an_empty_database_gets_all() -> None:
    assert missing_migrations(KNOWN, SchemaVersion(), "the database") == [FIRST, ADDS_A_COLUMN]


def test_an_older_database_gets_what_it_lacks() -> None:
    assert missing_migrations(KNOWN, SchemaVersion(1, 1), "the database") == [ADDS_A_COLUMN]


def test_an_up_to_date_database_gets_none() -> None:
    assert missing_migrations(KNOWN, SchemaVersion(2, 1), "the database") == []


def test_a_newer_database_that_still_serves_us_gets_none() -> None:
    assert missing_migrations(KNOWN, SchemaVersion(3, DROPS_A_COLUMN.oldest), "the database") == []
    assert missing_migrations(KNOWN, SchemaVersion(7, 1), "the database") == []


def test_a_database_that_newer_releases_have_to_themselves_is_left_alone() -> None:
    with pytest.raises(
        StoreCorruptError, match=r"^the database .* version 3, .* knows version 2; .* up to 1$"
    ):
        missing_migrations(KNOWN[:1], SchemaVersion(3, DROPS_A_COLUMN.oldest), "the database")
