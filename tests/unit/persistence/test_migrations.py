from __future__ import annotations

import pytest

from persistence import StoreCorruptError, StoreUnavailableError
from persistence.migrations import Migration, SchemaVersion, missing_migrations

FIRST = Migration(1, ("create",), oldest=1)
ADDS_A_COLUMN = Migration(2, ("alter",), oldest=1)
DROPS_A_COLUMN = Migration(3, ("drop",), oldest=2)
KNOWN = (FIRST, ADDS_A_COLUMN)


def test_an_empty_database_gets_all() -> None:
    assert missing_migrations(KNOWN, SchemaVersion(), "the database", create=True) == [FIRST, ADDS_A_COLUMN]


def test_an_older_database_gets_what_it_lacks() -> None:
    assert missing_migrations(KNOWN, SchemaVersion(1, 1), "the database", create=True) == [ADDS_A_COLUMN]


def test_an_up_to_date_database_gets_none() -> None:
    assert missing_migrations(KNOWN, SchemaVersion(2, 1), "the database", create=True) == []


def test_a_newer_database_that_still_serves_us_gets_none() -> None:
    assert (
        missing_migrations(KNOWN, SchemaVersion(3, DROPS_A_COLUMN.oldest), "the database", create=True) == []
    )
    assert missing_migrations(KNOWN, SchemaVersion(7, 1), "the database", create=True) == []


def test_a_database_that_newer_releases_have_to_themselves_is_left_alone() -> None:
    with pytest.raises(
        StoreCorruptError, match=r"^the database .* version 3, .* knows version 2; .* up to 1$"
    ):
        missing_migrations(KNOWN[:1], SchemaVersion(3, DROPS_A_COLUMN.oldest), "the database", create=True)


@pytest.mark.parametrize(
    ("found", "said"),
    [(SchemaVersion(), "^there is no store in the database$"), (SchemaVersion(1, 1), "older version 1")],
)
def test_nothing_is_made_or_changed_unless_asked_for(found: SchemaVersion, said: str) -> None:
    with pytest.raises(StoreUnavailableError, match=said):
        missing_migrations(KNOWN, found, "the database", create=False)
    assert missing_migrations(KNOWN, SchemaVersion(2, 1), "the database", create=False) == []
