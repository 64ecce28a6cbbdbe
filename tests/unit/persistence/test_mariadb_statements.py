"""Statements for MariaDB as text, and what is made of a server's settings; no server is asked."""

from __future__ import annotations

import re

import pytest

from persistence import StoreUnavailableError
from persistence.backends import MARIADB
from persistence.stores.mariadb.driver import ServerError
from persistence.stores.mariadb.failures import translate
from persistence.stores.mariadb.opening import ServerFacts
from persistence.stores.mariadb.settings import MariaDBOptions
from persistence.stores.mariadb.sql import Statements, literal, packets, row

MARIADB_VARIABLES = {
    "binlog_format": "MIXED",
    "idle_transaction_timeout": "0",
    "in_predicate_conversion_threshold": "1000",
    "innodb_flush_log_at_trx_commit": "1",
    "innodb_read_only": "OFF",
    "log_bin": "OFF",
    "max_allowed_packet": str(64 * 1024 * 1024),
    "max_statement_time": "0.000000",
    "read_only": "OFF",
    "sync_binlog": "0",
    "wsrep_on": "OFF",
}
MYSQL_VARIABLES = {
    "binlog_format": "ROW",
    "group_replication_group_name": "",
    "group_replication_single_primary_mode": "ON",
    "innodb_flush_log_at_trx_commit": "1",
    "log_bin": "ON",
    "max_allowed_packet": str(64 * 1024 * 1024),
    "max_execution_time": "0",
    "read_only": "OFF",
    "super_read_only": "OFF",
    "sync_binlog": "1",
}


def test_rows_are_split_by_number_and_by_size() -> None:
    statements = Statements("x_", 5_000)
    many = statements.delete(("p", f"{number}") for number in range(1200))
    assert len(many) > 3
    assert all(len(statement) <= 5_000 for statement in many)
    assert [
        statement.count("),(") + 1 for statement in Statements("x_", 10**6).delete([("", "k")] * 1200)
    ] == [
        500,
        500,
        200,
    ]
    large = [row(("p", "k"), bytes(size), "0" * 16, None, None) for size in (10, 20_000, 10, 10)]
    assert [statement.count("),(") + 1 for statement in statements.upsert(large)] == [1, 1, 2]
    assert statements.etags([]) == []


def test_statements_share_packets_up_to_a_size() -> None:
    assert list(packets(["aaaa", "bb", "cc", "d" * 20, "e"], 8)) == ["aaaa;bb", "cc", "d" * 20, "e"]
    assert list(packets([], 8)) == []


def test_no_text_of_a_caller_stands_in_a_statement_as_it_is() -> None:
    assert literal("a'\\;\u00e4") == "x'61275c3bc3a4'"
    assert row(("", "'"), b"\\';", "0" * 16, 5, "'").count("'") == 12
    statements = Statements("x_", 10_000)
    every = [*statements.delete([("{slots}", "{now};")]), *statements.lock(["{partitions}"])]
    assert not [statement for statement in every if "{" in statement or ";" in statement]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("10.11.19-MariaDB-0+deb12u1", "MariaDB 10.11.19"),
        ("5.5.5-10.3.34-MariaDB", "MariaDB 10.3.34"),
        ("8.0.36", "MySQL 8.0.36"),
    ],
)
def test_the_server_is_called_by_its_name(text: str, version: str) -> None:
    assert ServerFacts(text, {}).version == version


@pytest.mark.parametrize(
    ("changed", "obstacle"),
    [
        ({"read_only": "ON"}, "replica"),
        ({"super_read_only": "ON"}, "replica"),
        ({"innodb_read_only": "1"}, "replica"),
        ({"wsrep_on": "ON"}, "Galera"),
        ({"log_bin": "ON", "binlog_format": "STATEMENT"}, "binlog_format"),
        ({"max_allowed_packet": "65536"}, "max_allowed_packet"),
        (
            {"group_replication_group_name": "a-b", "group_replication_single_primary_mode": "OFF"},
            "several primaries",
        ),
    ],
)
def test_servers_on_which_locks_or_commits_fail_are_refused(changed: dict[str, str], obstacle: str) -> None:
    for variables in (MARIADB_VARIABLES, MYSQL_VARIABLES):
        ServerFacts("8.0", variables).check("here")
        with pytest.raises(StoreUnavailableError, match=f"here cannot be used: .*{obstacle}"):
            ServerFacts("8.0", variables | changed).check("here")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "loses none"),
        ({"innodb_flush_log_at_trx_commit": "2"}, "machine can lose about the last second"),
        ({"innodb_flush_log_at_trx_commit": "0"}, "crash of the server can lose about the last second"),
        ({"log_bin": "ON", "sync_binlog": "0"}, "sync_binlog=0.* can lose commits"),
    ],
)
def test_what_a_server_can_lose_is_one_sentence(changed: dict[str, str], said: str) -> None:
    durability = ServerFacts("", MARIADB_VARIABLES | changed).durability
    assert "\n" not in durability
    assert re.search(said, durability)


def test_waiting_times_are_told_to_each_server_in_its_own_words() -> None:
    options = MariaDBOptions()
    mariadb = ServerFacts("10.11-MariaDB", MARIADB_VARIABLES).settings(options)
    assert "SESSION idle_transaction_timeout=2" in mariadb
    assert "SESSION max_statement_time=10.0" in mariadb
    assert "wait_timeout=2," not in mariadb.replace("lock_wait_timeout", "")
    mysql = ServerFacts("8.0.36", MYSQL_VARIABLES).settings(options)
    assert "SESSION wait_timeout=2" in mysql
    assert "SESSION max_execution_time=10000" in mysql
    assert "max_statement_time" not in mysql


def test_limits_follow_the_size_of_a_packet() -> None:
    assert ServerFacts("", MARIADB_VARIABLES).limits == MARIADB.limits
    small = ServerFacts("", MARIADB_VARIABLES | {"max_allowed_packet": str(2**20)}).limits
    assert 0 < 2 * small.value_bytes < 2**20
    assert small.transaction_bytes > small.value_bytes


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (1205, "StoreBusyError"),
        (1213, "StoreBusyError"),
        (1406, "InvalidRequestError"),
        (1153, "TransactionTooLargeError"),
        (1146, "StoreCorruptError"),
        (1290, "StoreUnavailableError"),
        (1969, "StoreUnavailableError"),
        (9999, "StoreUnavailableError"),
    ],
)
def test_errors_of_the_server_have_their_meaning(code: int, name: str) -> None:
    error = translate(ServerError(code, "said so", 0), "the place")
    assert type(error).__name__ == name
    assert "the place" in str(error)
    assert "said so" in str(error)
