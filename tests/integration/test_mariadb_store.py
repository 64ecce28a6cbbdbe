"""What is particular to the MariaDB store: its tables, its statements, its options, the server's settings."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from persistence import (
    DeleteRequest,
    GetRequest,
    InvalidRequestError,
    Metadata,
    SetRequest,
    StoreBrokenError,
    StoreClosedError,
    StoreCorruptError,
    StoreUnavailableError,
    TransactionTooLargeError,
)
from persistence.migrations import Migration
from persistence.paging import Window
from persistence.stores.mariadb import MariaDBAddress, MariaDBOptions, MariaDBStore, from_url
from persistence.stores.mariadb.driver import Answer
from persistence.stores.mariadb.opening import Opener
from persistence.stores.mariadb.schema import prepare_schema
from persistence.stores.mariadb.sql import Statements, migrations
from tests.conftest import NewServer
from tests.support.servers import Server
from tests.support.servers._mariadb import MariadbServer

pytestmark = pytest.mark.server

EVERY_BYTE = bytes(range(256)) + b"'\"\\;--\\'\x00\x1a%s" + bytes(range(255, -1, -1))


@pytest.fixture
def url(server_of: Callable[[str], Server]) -> str:
    return server_of("mariadb").fresh_url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[MariaDBStore]:
    async with from_url(url) as store:
        yield store


async def run(store: MariaDBStore, sql: str) -> Answer:
    (answer,) = await store._opened().reader.run(sql)
    return answer


async def until(store: MariaDBStore, sql: str, expected: int) -> None:
    """Wait for what the server does by itself, of which it does not tell."""
    for _ in range(600):
        if (await run(store, sql)).rows == ((expected,),):
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{sql} is not {expected}")


async def tables(store: MariaDBStore) -> list[str]:
    return [name for (name,) in (await run(store, "SHOW TABLES")).rows]


def address_of(url: str) -> MariaDBAddress:
    return from_url(url)._address


async def prepare(url: str, known: Sequence[Migration], prefix: str = "hsm_") -> None:
    options = MariaDBOptions(prefix=prefix)
    session, _ = await Opener(address_of(url), options).open()
    try:
        await prepare_schema(session, Statements(prefix, 2**20), known, options, "here")
    finally:
        await session.close()


async def test_no_statement_reads_more_than_its_rows(store: MariaDBStore) -> None:
    """With 100 000 rows of which the server has no statistics, and one key or many."""
    for part in range(10):
        value = b"x" * 100
        await asyncio.gather(
            *(
                store.multi(
                    [
                        SetRequest(
                            partition=f"exec/{partition}",
                            key=f"key/{part}/{number:04}",
                            value=value,
                            metadata={"ttlInSeconds": "100"} if not number % 100 else {},
                        )
                        for number in range(1000)
                    ]
                )
                for partition in range(10)
            )
        )
    statements = store._opened().statements
    window = Window("exec/3", "key/1", "key/2", reverse=False)
    checked = {
        "page": [statements.page(window, 100, 1000)],
        "page of everything": [statements.page(Window("exec/3", "", "", reverse=False), 100, 1000)],
        "page backwards": [statements.page(window._replace(reverse=True), 100, 1000)],
        "keys": [statements.keys(window, 100)],
        "family": [statements.family(window, "key/", 100)],
        "expired": [statements.expired(100)],
    }
    for count in (1, 2, 500):
        slots = [(f"exec/{number % 10}", f"key/3/{number:04}") for number in range(count)]
        checked |= {
            f"etags of {count}": statements.etags(slots),
            f"rows of {count}": statements.rows(slots),
            f"delete of {count}": statements.delete(slots),
            f"delete expired of {count}": statements.delete_expired(slots),
            f"lock of {count}": statements.lock([partition for partition, _ in slots[:10]]),
        }
    for name, (statement,) in checked.items():
        for _, _, _, kind, _, key, _, _, rows, extra in (await run(store, f"EXPLAIN {statement}")).rows:
            if "Impossible WHERE" in extra:
                continue  # the row was looked up while planning, and does not match
            assert kind in {"const", "range", "ref"}, (name, kind)
            assert key == ("expires" if name == "expired" else "PRIMARY"), (name, key)
            assert "filesort" not in extra, (name, extra)
            assert "temporary" not in extra, (name, extra)
            assert name.startswith(("page", "keys", "family")) or int(rows) <= 500, (name, rows)


async def test_every_byte_is_kept_in_keys_and_values(store: MariaDBStore) -> None:
    keys = [chr(code) * 3 for code in (*range(1, 0x250), 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)]
    await store.bulk_set([SetRequest(partition=key, key=key, value=EVERY_BYTE) for key in keys])
    await store.bulk_set(
        [SetRequest(partition="p", key=key, value=EVERY_BYTE, metadata={"contentType": key}) for key in keys]
    )
    assert [item.key async for item in store.scan("p", "", "")] == keys
    assert {item.value async for item in store.scan("p", "", "")} == {EVERY_BYTE}
    for key in keys:
        assert (await store.get(GetRequest(partition=key, key=key))).data == EVERY_BYTE
    assert (await store.get(GetRequest(partition="p", key="'''"))).content_type == "'''"


async def test_a_content_type_that_is_too_long_is_refused_alone(store: MariaDBStore) -> None:
    long = SetRequest(key="long", value=b"", metadata={"contentType": "x" * 65_536})
    outcomes = await asyncio.gather(
        store.multi([SetRequest(key="a", value=b"")]),
        store.multi([long]),
        store.multi([SetRequest(key="b", value=b"")]),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], InvalidRequestError)
    assert [item.key async for item in store.scan("", "", "")] == ["a", "b"]
    await store.set(SetRequest(key="long", value=b"", metadata={"contentType": "x" * 65_535}))


async def test_pages_with_large_values_are_read_in_parts(store: MariaDBStore) -> None:
    sizes = [0, 10, 200_000, 5, 9_000_000, 16 * 2**20, 9_000_000, 1, 300_000] + [3] * 1200
    for number, size in enumerate(sizes[:9]):
        await store.set(SetRequest(key=f"{number:04}", value=bytes(size)))
    await store.bulk_set([SetRequest(key=f"{number:04}", value=bytes(3)) for number in range(9, len(sizes))])
    assert [len(item.value) async for item in store.scan("", "", "")] == sizes
    assert [len(item.value) async for item in store.scan("", "", "", reverse=True)] == sizes[::-1]
    assert [len(item.value) async for item in store.scan("", "", "", limit=6)] == sizes[:6]


async def test_pages_of_large_values_ask_for_few_rows(
    store: MariaDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    page = Statements.page

    def noted(self: Statements, window: Window, rows: int, inline_bytes: int) -> str:
        asked.append(rows)
        return page(self, window, rows, inline_bytes)

    monkeypatch.setattr(Statements, "page", noted)
    for number in range(12):
        await store.set(SetRequest(key=f"{number:02}", value=bytes(4 * 2**20)))
    assert len([item async for item in store.scan("", "", "")]) == 12
    # Only the first page can know nothing of their size.
    assert [rows for rows in asked if rows > 4] == [100]


async def test_a_wait_of_centuries_is_as_good_as_none(url: str) -> None:
    names = ("connect_timeout", "request_timeout", "lock_timeout", "idle_timeout", "cleanup_interval")
    async with from_url(f"{url}?{'&'.join(f'{name}=9e12' for name in names)}") as store:
        await store.set(SetRequest(key="a", value=b"x"))


async def test_a_note_that_comes_late_does_not_replace_a_newer_one(store: MariaDBStore) -> None:
    state = store._opened()
    for number in (7, 8, 6):
        await state.reader.run(state.statements.note_outcome(1, number))
    (answer,) = await state.reader.run(state.statements.outcome(1))
    assert answer.rows[0] == (8,)


async def test_large_families_are_deleted_in_parts(store: MariaDBStore) -> None:
    keys = [f"a||{number:05}" for number in range(5100)] + ["a||b||c", "a", "a|", "b||c", "a||\u00e4"]
    await store.bulk_set([SetRequest(key=key, value=b"") for key in keys])
    assert await store.delete_with_prefix("", "a") == 5101
    assert [item.key async for item in store.scan("", "", "")] == ["a", "a|", "a||b||c", "b||c"]


async def test_the_server_decides_how_large_a_value_may_be(new_server: NewServer) -> None:
    server = new_server("mariadb")
    assert isinstance(server, MariadbServer)
    server.sql("SET GLOBAL max_allowed_packet = 1048576")
    async with from_url(server.url) as store:
        size = store.limits.value_bytes
        assert 300_000 < size < 500_000
        value = (EVERY_BYTE * (size // len(EVERY_BYTE) + 1))[:size]
        longest = "\u00e4" * (store.limits.key_bytes // 2)
        await store.multi(
            [
                SetRequest(key=longest, value=value, metadata={"contentType": "x" * 65_535}),
                *(SetRequest(key=f"key/{number}", value=value) for number in range(20)),
            ]
        )
        assert [item.value async for item in store.scan("", "", "")] == [value] * 21
        reads = (store.get(GetRequest(key=f"key/{number}")) for number in range(20))
        assert {response.data for response in await asyncio.gather(*reads)} == {value}
        with pytest.raises(TransactionTooLargeError):
            await store.set(SetRequest(key="key", value=value + b"x"))
        await store.bulk_delete([DeleteRequest(key=f"{'x' * 1000}{number}") for number in range(2000)])
    server.sql("SET GLOBAL max_allowed_packet = 16384")
    with pytest.raises(StoreUnavailableError, match="max_allowed_packet is 16384"):
        await from_url(server.url).__aenter__()


async def test_defaults_of_the_server_do_not_matter(new_server: NewServer) -> None:
    server = new_server("mariadb")
    assert isinstance(server, MariadbServer)
    server.sql(
        "SET GLOBAL sql_mode='ANSI_QUOTES,PIPES_AS_CONCAT,ORACLE', GLOBAL completion_type='CHAIN',"
        " GLOBAL time_zone='+09:30', GLOBAL sql_select_limit=1, GLOBAL autocommit=0, GLOBAL tx_read_only=1,"
        " GLOBAL tx_isolation='SERIALIZABLE', GLOBAL default_storage_engine='Aria', GLOBAL sql_safe_updates=1,"
        " GLOBAL innodb_lock_wait_timeout=0, GLOBAL collation_connection='latin1_german1_ci'"
    )
    async with from_url(server.url) as store, from_url(server.url) as other:
        metadata = {"ttlInSeconds": "3600"}
        await asyncio.gather(
            *(
                each.set(SetRequest(key=f"{name}/{number}", value=EVERY_BYTE, metadata=metadata))
                for name, each in (("a", store), ("b", other))
                for number in range(50)
            )
        )
        assert len([item async for item in store.scan("", "", "")]) == 100
        await store.multi([DeleteRequest(key="a/0"), SetRequest(key="\u00e4", value=b"")])
        assert (await other.get(GetRequest(key="\u00e4"))).data == b""


async def test_what_can_be_lost_is_told(new_server: NewServer) -> None:
    server = new_server("mariadb")
    assert isinstance(server, MariadbServer)
    with pytest.raises(StoreClosedError):
        _ = from_url(server.url).durability
    for setting, said in (("1", "a crash loses none"), ("2", "machine can lose"), ("0", "server can lose")):
        server.sql(f"SET GLOBAL innodb_flush_log_at_trx_commit={setting}")
        async with from_url(server.url) as store:
            assert said in store.durability
            assert f"innodb_flush_log_at_trx_commit={setting}" in store.durability
            assert store.server_version.startswith("MariaDB 1")


async def test_expired_rows_are_deleted_by_one_of_several(url: str) -> None:
    quick = f"{url}?cleanup_interval=0.2"
    async with from_url(quick) as store, from_url(quick), from_url(url) as slow:
        await store.multi(
            [
                SetRequest(key=str(number), value=b"", metadata={"ttlInSeconds": str(1 + 99 * (number % 2))})
                for number in range(1500)
            ]
        )
        await run(store, "INSERT INTO hsm_outcomes VALUES (1, 1, 0)")
        await until(store, "SELECT COUNT(*) FROM hsm_kv", 750)
        assert (await run(store, "SELECT COUNT(*) FROM hsm_outcomes WHERE writer = 1")).rows == ((0,),)
        claim = slow._opened().statements.claim_cleanup(60_000)
        assert [(await run(slow, claim)).affected for _ in range(2)] == [0, 0]
        await run(slow, "UPDATE hsm_meta SET value = 2 * value WHERE name = 'last-cleanup'")
        # A clock that was wrong must not stop cleaning for years.
        assert [(await run(slow, claim)).affected for _ in range(2)] == [1, 0]


async def test_many_may_open_an_empty_database_at_once(url: str) -> None:
    stores = [from_url(url) for _ in range(20)]
    await asyncio.gather(*(store.init(Metadata()) for store in stores))
    await asyncio.gather(*(store.set(SetRequest(key=repr(store), value=b"")) for store in stores))
    await asyncio.gather(*(store.aclose() for store in stores))


async def test_a_schema_that_was_left_half_made_is_finished(url: str) -> None:
    (whole,) = migrations("hsm_")
    session, _ = await Opener(address_of(url), MariaDBOptions()).open()
    for statement in whole.statements[:2]:
        await session.run(statement)
    await session.close()
    async with from_url(url) as store:
        assert len(await tables(store)) == 4


async def test_older_and_newer_releases_share_a_database(url: str) -> None:
    known = migrations("hsm_")
    column = "ALTER TABLE hsm_kv ADD COLUMN IF NOT EXISTS news BIGINT NOT NULL DEFAULT 7"
    newer = [*known, Migration(2, [column], oldest=1)]
    async with from_url(url) as old:
        await old.set(SetRequest(key="before", value=b"1"))
        await asyncio.gather(*(prepare(url, newer) for _ in range(5)))
        await old.multi([SetRequest(key="after", value=b"2"), DeleteRequest(key="before")])
        assert (await run(old, "SELECT k, news FROM hsm_kv")).rows == ((b"after", 7),)
        async with from_url(url) as opened_later:
            await opened_later.set(SetRequest(key="later", value=b"3"))
        await prepare(url, [*newer, Migration(3, [], oldest=2)])
        with pytest.raises(StoreCorruptError, match="version 3, which needs a release that knows version 2"):
            await from_url(url).__aenter__()
        await prepare(url, newer)


async def test_tables_of_somebody_else_are_left_alone(store: MariaDBStore, url: str) -> None:
    await run(store, "CREATE TABLE foreign_kv (id INT PRIMARY KEY)")
    await run(store, "CREATE VIEW view_meta AS SELECT * FROM hsm_kv")
    before = await tables(store)
    for prefix in ("foreign_", "view_"):
        with pytest.raises(StoreCorruptError, match=f"{prefix}.* belongs to another application"):
            await from_url(f"{url}?prefix={prefix}").__aenter__()
    assert await tables(store) == before


async def test_tables_that_were_changed_or_dropped_are_noticed(store: MariaDBStore, url: str) -> None:
    await run(store, "ALTER TABLE hsm_outcomes ENGINE=Aria")
    with pytest.raises(StoreCorruptError, match="engine Aria"):
        await from_url(url).__aenter__()
    await run(store, "DROP TABLE hsm_outcomes")
    with pytest.raises(StoreCorruptError, match="some of the tables"):
        await from_url(url).__aenter__()
    with pytest.raises(StoreCorruptError, match="damaged or gone"):
        await store.set(SetRequest(key="key", value=b""))
    with pytest.raises(StoreBrokenError):
        await store.set(SetRequest(key="key", value=b""))


async def test_prefixes_keep_stores_in_one_database_apart(store: MariaDBStore, url: str) -> None:
    with pytest.raises(StoreUnavailableError, match="no store in database"):
        await from_url(f"{url}?prefix=b_&create=false").__aenter__()
    assert len(await tables(store)) == 4
    async with from_url(f"{url}?prefix=b_") as other, from_url(f"{url}?create=false") as same:
        await other.set(SetRequest(key="key", value=b"other"))
        assert (await same.get(GetRequest(key="key"))).data is None
        assert len(await tables(store)) == 8


@pytest.mark.parametrize(
    "query",
    ["prefix=A", "prefix=a-b", f"prefix={'x' * 41}", "tls=maybe", "lanes=0", "readers=0", "nonsense=1"],
)
def test_options_that_are_none_are_refused(query: str) -> None:
    with pytest.raises(InvalidRequestError):
        from_url(f"mysql://host/database?{query}")


@pytest.mark.parametrize("bad", ["mysql://host", "mysql://host/", "mysql://host/a/b", "mysql://host:port/a"])
def test_urls_that_name_no_database_are_refused(bad: str) -> None:
    with pytest.raises(InvalidRequestError):
        from_url(bad)


async def test_what_init_is_told_goes_before_the_url(url: str) -> None:
    store = from_url(f"{url}?prefix=a_&lanes=2")
    await store.init(Metadata({"prefix": "b_", "cleanup_interval": "3"}))
    assert store._options == MariaDBOptions(prefix="b_", lanes=2, cleanup_interval=timedelta(seconds=3))
    assert (await tables(store))[0].startswith("b_")
    await store.aclose()


def test_the_environment_fills_in_what_the_url_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSQL_HOST", "db.example")
    monkeypatch.setenv("MYSQL_TCP_PORT", "3307")
    monkeypatch.setenv("MYSQL_PWD", "se:cret")
    address = from_url("mariadb://me@/state")._address
    assert (address.host, address.port, address.password) == ("db.example", 3307, "se:cret")
    address = from_url("mysql://me:p%40ss%2F@[::1]:3308/st%C3%A4te")._address
    assert (address.host, address.port, address.password, address.database) == (
        "::1",
        3308,
        "p@ss/",
        "st\u00e4te",
    )
    assert "se:cret" not in repr(from_url("mariadb://me@/state"))
    assert "p@ss" not in repr(address)


async def test_a_wrong_password_or_database_is_told_without_the_password(new_server: NewServer) -> None:
    server = new_server("mariadb", password="it's/@ \\se\u20accret:")
    async with from_url(server.url) as store:
        await store.set(SetRequest(key="key", value=b""))
    for bad, said in (
        (f"mysql://hsm:wr0ng@127.0.0.1:{server.port}/hsm", "Access denied"),
        (f"mysql://127.0.0.1:{server.port}/hsm", "Access denied"),
        (server.url.replace("/hsm", "/nothing").replace("//nothing", "//hsm"), "Unknown database"),
        (f"mysql://hsm:wr0ng@127.0.0.1:{server.port + 1}/hsm", "Connect call failed"),
        ("mysql://hsm:wr0ng@nowhere.invalid/hsm", "nowhere.invalid"),
        ("mysql://hsm:wr0ng@localhost/hsm?socket=/nowhere/socket", "/nowhere/socket"),
    ):
        with pytest.raises(StoreUnavailableError, match=said) as caught:
            await from_url(bad).__aenter__()
        assert "wr0ng" not in str(caught.value)
        assert "cret" not in str(caught.value)


async def test_a_unix_socket_will_do(server_of: Callable[[str], Server]) -> None:
    server = server_of("mariadb")
    if not isinstance(server, MariadbServer):
        pytest.skip("the server may be on another machine")
    async with from_url(f"mysql://root@/hsm?prefix=socket_&socket={server._socket}") as store:
        await store.set(SetRequest(key="key", value=b""))
        assert str(server._socket) in repr(store)


async def test_connections_are_encrypted_if_asked_for(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server("mariadb", tls=True, password="secret")
    plain, _, _ = server.url.partition("?")
    ca = f"tls_ca={server.ca_file}"
    for good in (server.url, f"{plain}?tls=require", f"{plain}?tls=verify&{ca}", f"{plain}?{ca}"):
        async with from_url(good) as store:
            value = bytes(3_000_000)
            await store.multi([SetRequest(key="key", value=value)])
            assert (await store.get(GetRequest(key="key"))).data == value
            assert (await run(store, "SHOW STATUS LIKE 'Ssl_cipher'")).rows[0][1]
    for bad in (plain, f"{plain}?tls=verify", f"{plain.replace('127.0.0.1', '127.0.0.2')}?{ca}"):
        with pytest.raises(StoreUnavailableError):
            await from_url(bad).__aenter__()
    with pytest.raises(StoreUnavailableError, match="certificate or key"):
        await from_url(f"{plain}?tls_ca={tmp_path}/nothing").__aenter__()
    with pytest.raises(InvalidRequestError, match="does not go with"):
        await from_url(f"{plain}?tls=disable&{ca}").__aenter__()


async def test_a_server_without_encryption_is_not_told_the_password(url: str) -> None:
    with pytest.raises(StoreUnavailableError):
        await from_url(f"{url}?tls=require").__aenter__()


async def test_a_server_that_speaks_another_language_is_unavailable() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(StoreUnavailableError):
            await from_url(f"mysql://127.0.0.1:{port}/hsm?connect_timeout=1").__aenter__()


async def test_closing_leaves_no_task_and_no_connection(url: str) -> None:
    tasks = asyncio.all_tasks()
    async with from_url(url) as watcher:
        store = from_url(f"{url}?lanes=3&readers=3")
        await store.init(Metadata())
        writes = [
            asyncio.create_task(store.set(SetRequest(partition=str(n), key="k", value=b"")))
            for n in range(99)
        ]
        reads = [asyncio.create_task(store.get(GetRequest(partition=str(n), key="k"))) for n in range(99)]
        await asyncio.sleep(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await store.aclose()
        await asyncio.gather(*writes, *reads)
        database = address_of(url).database
        mine = f"SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{database}'"
        await until(watcher, mine, 1)
        assert (await run(watcher, "SELECT COUNT(*) FROM hsm_kv")).rows == ((99,),)
    assert asyncio.all_tasks() == tasks


async def test_closing_waits_for_reads_that_are_under_way(url: str) -> None:
    store = from_url(url)
    await store.init(Metadata())
    await store.bulk_set([SetRequest(key=f"{number:03}", value=b"") for number in range(300)])
    scan = store.scan("", "", "")
    assert (await anext(scan)).key == "000"
    await store.aclose()
    with pytest.raises(StoreClosedError):
        _ = [item async for item in scan]
