"""What is particular to the PostgreSQL store: its schema, plans, large values, sessions, watches, expired rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from persistence import (
    ChangeKind,
    DeleteRequest,
    GetRequest,
    InvalidRequestError,
    Metadata,
    SetRequest,
    StoreCorruptError,
    StoreUnavailableError,
)
from persistence.paging import Window
from persistence.stores.postgresql import PostgresOptions, PostgresStore, from_url, listening
from persistence.stores.postgresql.dialect import DISTRIBUTED, POSTGRESQL, dialect_of
from persistence.stores.postgresql.listening import Listener
from persistence.stores.postgresql.locks import channel
from persistence.stores.postgresql.notices import Notice, payloads, read_payload
from persistence.stores.postgresql.session import Connector, Session
from persistence.stores.postgresql.settings import divide_url
from persistence.stores.postgresql.sql import Statements
from tests.conftest import NewServer
from tests.support.servers import Server
from tests.support.stores import run_together

pytestmark = pytest.mark.server


@pytest.fixture
def server(server_of: Callable[[str], Server]) -> Server:
    return server_of("postgresql")


@pytest.fixture
def url(server: Server) -> str:
    return server.fresh_url()


def schema_of(url: str) -> str:
    return divide_url(url)[1]["schema"]


@asynccontextmanager
async def administrator(url: str, **parameters: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    conninfo = make_conninfo("", **{**divide_url(url)[0], **parameters})
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        yield connection


async def sql(url: str, *statements: str) -> list[Any]:
    """Run statements as the administrator, `{s}` being the schema; the rows of the last one."""
    async with administrator(url) as connection:
        cursor = connection.cursor()
        for statement in statements:
            await cursor.execute(statement.replace("{s}", schema_of(url)).encode())
        return [] if cursor.description is None else await cursor.fetchall()


def put(key: str, value: bytes = b"", **more: Any) -> SetRequest:
    return SetRequest(key=key, value=value, **more)


async def keys(store: PostgresStore) -> list[str]:
    return [item.key async for item in store.scan("", "", "")]


# Schema and rights


async def test_schema_is_made_once_by_many_processes(url: str) -> None:
    program = "import asyncio, sys; from persistence import *; asyncio.run(connect(sys.argv[1]).__aenter__())"
    await asyncio.to_thread(run_together, program, [(url,)] * 6)
    assert await sql(url, "SELECT value FROM {s}.meta WHERE name = 'version'") == [("1",)]


async def test_without_create_nothing_is_made(url: str) -> None:
    with pytest.raises(StoreUnavailableError, match=f"no store in schema '{schema_of(url)}'"):
        await from_url(url + "&create=false").init(Metadata())
    assert await sql(url, "SELECT 1 FROM pg_namespace WHERE nspname = '{s}'") == []
    async with from_url(url):
        pass
    async with from_url(url + "&create=false") as store:
        await store.set(put("a"))


async def test_a_newer_schema_that_suits_older_code_is_used(url: str) -> None:
    async with from_url(url) as older:
        await sql(
            url,
            "ALTER TABLE {s}.kv ADD COLUMN added int DEFAULT 7",
            "UPDATE {s}.meta SET value = '2' WHERE name = 'version'",
        )
        await older.set(put("a", b"1"))
        async with from_url(url) as store:
            await store.set(put("b", b"2"))
            assert await keys(older) == await keys(store) == ["a", "b"]
    assert await sql(url, "SELECT value FROM {s}.meta WHERE name = 'version'") == [("2",)]


async def test_a_schema_from_the_future_is_left_alone(url: str) -> None:
    async with from_url(url) as store:
        await store.set(put("a"))
    await sql(url, "UPDATE {s}.meta SET value = '9' WHERE name IN ('version', 'oldest')")
    before = await sql(url, "TABLE {s}.meta")
    with pytest.raises(StoreCorruptError, match=f"{schema_of(url)}.* schema version 9"):
        await from_url(url).init(Metadata())
    assert await sql(url, "TABLE {s}.meta") == before


@pytest.mark.parametrize(
    "table", ["kv (x int)", "meta (name text, value text)", "meta (id int)", "watchers (p text)"]
)
async def test_tables_of_somebody_else_are_left_alone(url: str, table: str) -> None:
    await sql(url, "CREATE SCHEMA {s}", f"CREATE TABLE {{s}}.{table}")
    with pytest.raises(StoreCorruptError, match=f"{schema_of(url)}.* another application"):
        await from_url(url).init(Metadata())
    tables = await sql(url, "SELECT tablename FROM pg_tables WHERE schemaname = '{s}'")
    assert tables == [(table.split(maxsplit=1)[0],)]


async def test_a_schema_may_hold_other_tables(url: str) -> None:
    await sql(url, "CREATE SCHEMA {s}", "CREATE TABLE {s}.orders (id int)")
    async with from_url(url) as store:
        await store.set(put("a"))


async def test_no_right_to_create_is_needed_once_the_schema_is_there(url: str) -> None:
    role = f"{schema_of(url)}_user"
    await sql(url, f"CREATE ROLE {role} LOGIN")
    poor = url.replace("postgres@", f"{role}@")
    with pytest.raises(StoreUnavailableError, match=r"may not make or use .*database"):
        await from_url(poor).init(Metadata())
    async with from_url(url):
        pass
    with pytest.raises(StoreUnavailableError, match=r"may not make or use .*schema"):
        await from_url(poor).init(Metadata())
    await sql(
        url,
        f"GRANT USAGE ON SCHEMA {{s}} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {{s}} TO {role}",
    )
    async with from_url(poor) as store:
        await store.set(put("a||b"))
        changes = store.watch("", "")
        assert (await anext(changes)).kind is ChangeKind.RESYNC
        assert await store.delete_with_prefix("", "a") == 1


@pytest.mark.parametrize("schema", ['we"ird', "100% %s", "Ünïcode", "a b;--", "{order}{schema}", "x" * 63])
async def test_any_name_of_a_schema_is_safe(server: Server, schema: str) -> None:
    parameters, _ = divide_url(server.url)
    async with PostgresStore(parameters, options=PostgresOptions(schema=schema)) as store:
        await store.set(put("a||b", b"1"))
        assert await keys(store) == ["a||b"]
        assert (await anext(store.watch("", ""))).kind is ChangeKind.RESYNC
        assert await store.delete_with_prefix("", "a") == 1
        await store.ping()
    quoted = '"' + schema.replace('"', '""') + '"'
    await sql(server.url, f"DROP SCHEMA {quoted} CASCADE")


async def test_databases_in_other_encodings_are_refused(server: Server) -> None:
    await sql(server.url, "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(StoreUnavailableError, match="encoding LATIN1"):
        await from_url(server.url.replace("/postgres?", "/latin?")).init(Metadata())


# Options


def test_options_of_ours_and_of_libpq_share_the_query() -> None:
    parameters, options = divide_url(
        "postgres://me:p%40ss@a:1,b:2/db?schema=s%25&sslmode=require&connect_timeout=3&options=-c%20jit%3Doff"
    )
    assert options == {"schema": "s%", "connect_timeout": "3"}
    assert parameters == {
        "user": "me", "password": "p@ss", "host": "a,b", "port": "1,2", "dbname": "db",
        "sslmode": "require", "options": "-c jit=off",
    }  # fmt: skip


def test_nothing_tells_the_password() -> None:
    store = from_url("postgresql://me:secret@host/db")
    assert "secret" not in repr(store)
    with pytest.raises(InvalidRequestError) as refused:
        from_url("postgresql://me:secret@[host/db")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "option", ["schema=", "schema=" + "x" * 64, "lanes=0", "lock_timeout=soon", "prepare=maybe"]
)
def test_bad_options_are_named(option: str) -> None:
    with pytest.raises(InvalidRequestError, match=option.split("=", maxsplit=1)[0]):
        from_url(f"postgresql://host/db?{option}")


async def test_options_come_from_metadata_too(url: str) -> None:
    store = from_url(url)
    await store.init(Metadata({"lanes": "2", "readers": "1"}))
    await asyncio.gather(*(store.set(put("k", partition=str(n))) for n in range(50)))
    assert (
        len(await asyncio.gather(*(store.get(GetRequest(partition=str(n), key="k")) for n in range(50))))
        == 50
    )
    await store.aclose()


@pytest.mark.parametrize(
    "setting", ["default_transaction_isolation=serializable", "default_transaction_read_only=on"]
)
async def test_defaults_of_the_server_do_not_weaken_conditions(url: str, setting: str) -> None:
    odd = f"{url}&options=-c%20{setting}"
    async with from_url(url):
        pass
    async with from_url(odd) as first, from_url(odd) as second:
        for round_ in range(20):
            await asyncio.gather(*(store.set(put(f"{round_}")) for store in (first, second)))
        etag = await first.multi([put("counter", b"0")])
        assert etag
        for store in (second, first, second):
            row = await store.get(GetRequest(key="counter"))
            await store.set(put("counter", b"%d" % (int(row.data or b"") + 1), etag=row.etag))
        assert (await first.get(GetRequest(key="counter"))).data == b"3"


async def test_sessions_may_be_idle_whatever_the_default_says(url: str) -> None:
    connector = Connector(
        divide_url(f"{url}&options=-c%20idle_session_timeout%3D60000")[0], PostgresOptions()
    )
    session, _ = await connector.connect()
    assert await session.rows(b"SHOW idle_session_timeout") == [("0",)]
    await session.aclose()


async def test_commits_are_as_durable_as_can_be(url: str) -> None:
    parameters, _ = divide_url(f"{url}&options=-c%20synchronous_commit%3Doff")
    session, _ = await Connector(parameters, PostgresOptions()).connect()
    assert await session.rows(b"SHOW synchronous_commit") == [("on",)]
    await session.aclose()


async def test_durability_and_version_are_told(url: str) -> None:
    async with from_url(url) as store:
        assert store.durability.startswith("fsync=off")
        assert store.server_version.startswith("PostgreSQL ")


async def test_the_first_host_that_serves_is_taken(server: Server, url: str) -> None:
    several = url.replace("@127.0.0.1:", "@127.0.0.1:1,127.0.0.1:")
    async with from_url(several) as store:
        await store.set(put("a"))
        assert str(server.port) in repr(store)


async def test_without_prepared_statements_everything_works(url: str) -> None:
    async with from_url(url + "&prepare=false") as store:
        etag = await store.multi([put("a", b"1"), put("b", b"2", metadata={"ttlInSeconds": "100"})])
        await store.multi([put("a", b"2", etag=etag), DeleteRequest(key="b", etag=etag)])
        assert await keys(store) == ["a"]
        async with administrator(url) as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN%'"
            )
            assert await cursor.fetchone() is not None


async def test_tls_and_password(new_server: NewServer) -> None:
    server = new_server("postgresql", tls=True, password="s3cret ü")
    async with from_url(server.url) as store:
        await store.set(put("a"))
        assert "s3cret" not in repr(store)
    with pytest.raises(StoreUnavailableError) as refused:
        await from_url(server.url.replace("sslmode=verify-full", "sslmode=disable")).init(Metadata())
    assert "s3cret" not in str(refused.value)


def test_other_servers_are_recognised() -> None:
    assert dialect_of("PostgreSQL 18.6 on x86_64-pc-linux-gnu") is POSTGRESQL
    assert dialect_of("CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu)") is DISTRIBUTED
    assert dialect_of("PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64") is DISTRIBUTED


# Sizes and plans


async def test_large_values_and_long_keys(url: str) -> None:
    async with from_url(url) as store:
        longest = "ü" * 1022
        await store.set(put(longest, b"x" * store.limits.value_bytes, partition="1234"))
        row = await store.get(GetRequest(partition="1234", key=longest))
        assert row.data == b"x" * store.limits.value_bytes


async def test_many_large_values_are_read_in_pieces(url: str) -> None:
    value = b"x" * (6 * 1024 * 1024)
    async with from_url(url) as store:
        names = [f"key/{n}" for n in range(7)]
        await store.bulk_set([put(name, value) for name in names])
        rows = await store.bulk_get([GetRequest(key=name) for name in (*names, "absent")])
        assert [row.data for row in rows] == [value] * 7 + [None]
        assert await store.bulk_values("", [*names, "absent"]) == [value] * 7 + [None]
        assert await keys(store) == names
        backwards = [(item.key, item.value == value) async for item in store.scan("", "", "", reverse=True)]
        assert backwards == [(name, True) for name in reversed(names)]


async def test_batches_over_many_partitions(url: str) -> None:
    async with from_url(url) as store:
        partitions = [str(n) for n in range(700)]
        await asyncio.gather(*(store.set(put("k", partition=name)) for name in partitions))
        rows = await store.bulk_get([GetRequest(key="k", partition=name) for name in partitions])
        assert all(row.data == b"" for row in rows)


def plan_nodes(plan: Any) -> Sequence[str]:
    found = [f"{plan['Node Type']} {plan.get('Relation Name', '')}".strip()]
    for child in plan.get("Plans", ()):
        found += plan_nodes(child)
    return found


async def test_no_statement_reads_the_whole_table_or_sorts(url: str) -> None:
    async with from_url(url):
        await sql(
            url,
            "ALTER TABLE {s}.kv SET (autovacuum_enabled = off)",
            "INSERT INTO {s}.kv SELECT 'p', 'key/' || n, '0', NULL, NULL, 'v' FROM generate_series(1, 100000) n",
        )
    statements = Statements(schema_of(url), POSTGRESQL)
    texts, bigints = "ARRAY['p','p']::text[]", "ARRAY[1,NULL]::int8[]"
    slots = [texts, "ARRAY['key/7','x']::text[]"]
    blobs = "ARRAY['v','v']::bytea[]"
    cases: dict[str, tuple[bytes, list[str]]] = {
        name: (statements[name], parameters)
        for name, parameters in {
            "lookup": [texts, *slots],
            "upsert": [*slots, texts, blobs],
            "upsert-full": [*slots, texts, blobs, bigints, texts],
            "delete": slots,
            "delete-family": ["'p'", "'key/7||'", "'key/7|}'", "7"],
            "etags": slots,
            "rows": ["1000", *slots],
            "values": ["1000", "'p'", slots[1]],
            "any-expired": [],
            "delete-expired": ["1000"],
            "renew": ["60", "'me'", texts, "20"],
        }.items()
    }
    for reverse in (False, True):
        for end in ("", "key/5"):
            for after in (False, True):
                window = Window("p", "key/2", end, reverse, after)
                for name in ("scan", "keys"):
                    statement, bounds = statements.window(name, window)
                    sizes = ["100", "1000"] if name == "scan" else ["100"]
                    cases[f"{name} {window}"] = statement, [*(f"'{bound}'" for bound in bounds), *sizes]
    connector = Connector(divide_url(url)[0], PostgresOptions())
    session, _ = await connector.connect()
    for name, (statement, parameters) in cases.items():
        text = statement.decode()
        for parameter in parameters:
            text = text.replace("%b", parameter, 1)
        ((plan,),) = await session.rows(f"EXPLAIN (FORMAT JSON) {text.replace('%', '%%')}".encode())
        nodes = plan_nodes((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"])
        assert not [node for node in nodes if node.startswith(("Seq Scan", "Sort", "Bitmap"))], (name, nodes)
        assert any("kv" in node or "watchers" in node for node in nodes), (name, nodes)
    await session.aclose()


# Expired rows


async def test_expired_rows_are_deleted_by_one_of_the_stores(url: str) -> None:
    options = "&cleanup_interval=0.2"
    async with from_url(url + options) as first, from_url(url + options) as second:
        await first.bulk_set([put(f"{n}", metadata={"ttlInSeconds": "1"}) for n in range(2500)])
        await second.set(put("kept", metadata={"ttlInSeconds": "1"}))
        await second.set(put("kept", b"2"))
        async with asyncio.timeout(20):
            while (await sql(url, "SELECT count(*) FROM {s}.kv")) != [(1,)]:  # noqa: ASYNC110  the database tells nobody
                await asyncio.sleep(0.1)
        assert await keys(first) == ["kept"]


async def test_deleting_expired_rows_waits_for_nobody_and_hits_nothing_new(url: str) -> None:
    async with from_url(url) as store:
        await store.set(put("a"))
        await store.set(put("b"))
        await sql(url, "UPDATE {s}.kv SET expires = now() - interval '1 s'")
        statement = Statements(schema_of(url), POSTGRESQL)["delete-expired"].decode().replace("%b", "1000")
        async with administrator(url) as connection, connection.transaction():
            # Somebody writes the row at this moment.
            await connection.execute(f"UPDATE {schema_of(url)}.kv SET expires = NULL WHERE k = 'a'".encode())
            await sql(url, statement)
        assert await keys(store) == ["a"]


# Watches


async def told(changes: AsyncIterator[Any], key: str) -> None:
    async with asyncio.timeout(20):
        async for change in changes:
            if change.key == key:
                return


async def test_writers_tell_only_those_who_watch(url: str) -> None:
    async with from_url(url) as writer, from_url(url) as watcher:
        changes = watcher.watch("p", "k")
        assert (await anext(changes)).kind is ChangeKind.RESYNC
        async with administrator(url) as listener:
            await listener.execute(f"LISTEN {channel_of(url)}".encode())
            await writer.set(put("k1", partition="q"))
            await writer.set(put("k2", partition="p"))
            notice = await anext(listener.notifies(timeout=20))
            assert read_payload(notice.payload).keys == ["k2"]
        await told(changes, "k2")
        assert await sql(url, "SELECT p FROM {s}.watchers") == [("p",)]
    assert await sql(url, "SELECT p FROM {s}.watchers") == []


def channel_of(url: str) -> str:
    return channel(schema_of(url))


async def test_a_watch_survives_the_loss_of_its_connection(url: str) -> None:
    async with from_url(url) as writer, from_url(url) as watcher:
        changes, others = watcher.watch("p", ""), watcher.watch("q", "")
        assert (await anext(changes)).kind is ChangeKind.RESYNC
        assert (await anext(others)).kind is ChangeKind.RESYNC
        await sql(
            url,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%{channel_of(url)}%' AND pid <> pg_backend_pid()",
        )
        async with asyncio.timeout(20):
            assert (await anext(changes)).kind is ChangeKind.RESYNC
            assert (await anext(others)).kind is ChangeKind.RESYNC
        await writer.set(put("k", partition="p"))
        await told(changes, "k")


def listener_of(store: PostgresStore) -> Listener:
    assert store._state is not None
    return store._state.listener


async def test_registrations_are_renewed_and_dropped_when_nobody_watches_any_more(url: str) -> None:
    async with from_url(url) as store:
        listener_of(store)._renewal_seconds = 0.1
        changes, others = store.watch("p", ""), store.watch("q", "")
        assert (await anext(changes)).kind is (await anext(others)).kind is ChangeKind.RESYNC
        ((first,),) = await sql(url, "SELECT expires FROM {s}.watchers WHERE p = 'p'")
        del others
        async with asyncio.timeout(20):
            while (rows := await sql(url, "SELECT p, expires FROM {s}.watchers")) != [("p", rows[0][1])]:  # noqa: ASYNC110  the database tells nobody
                await asyncio.sleep(0.05)
        assert rows[0][1] > first


async def test_a_watch_that_begins_while_others_are_dropped_is_registered(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with from_url(url) as store:
        listener = listener_of(store)
        listener._renewal_seconds = 0.1
        rows, begun = Session.rows, asyncio.Event()
        late: AsyncIterator[Any]

        async def begin_first(session: Session, statement: bytes, parameters: Any = ()) -> Any:
            if statement == listener._sql["forget"] and not begun.is_set():
                nonlocal late
                listener._renewal_seconds = 1000
                late = store.watch("late", "")
                assert (await anext(late)).kind is ChangeKind.RESYNC
                begun.set()
            return await rows(session, statement, parameters)

        monkeypatch.setattr(Session, "rows", begin_first)
        early = store.watch("early", "")
        assert (await anext(early)).kind is ChangeKind.RESYNC
        async with asyncio.timeout(20):
            await begun.wait()
            assert (await anext(late)).kind is ChangeKind.RESYNC
        found = await sql(url, "SELECT p FROM {s}.watchers ORDER BY p")
        assert found == [("early",), ("late",)]


@pytest.mark.parametrize("payload", ["", "5", "null", "[null]", "[1e999]", "{}", "[[1]]", "[" * 7000])
async def test_what_others_say_on_the_channel_is_not_heard(url: str, payload: str) -> None:
    async with from_url(url) as store:
        changes = store.watch("p", "")
        assert (await anext(changes)).kind is ChangeKind.RESYNC
        await sql(url, f"SELECT pg_notify('{channel_of(url)}', '{payload}')")
        await store.set(put("k", partition="p"))
        await told(changes, "k")


async def test_a_watch_outlives_what_nobody_has_foreseen(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with from_url(url) as store:
        changes = store.watch("p", "")
        assert (await anext(changes)).kind is ChangeKind.RESYNC

        def fail_once(payload: str) -> Notice:
            monkeypatch.undo()
            raise RuntimeError(payload)

        monkeypatch.setattr(listening, "read_payload", fail_once)
        await store.set(put("k", partition="p"))
        async with asyncio.timeout(20):
            assert (await anext(changes)).kind is ChangeKind.RESYNC
        await store.set(put("l", partition="p"))
        await told(changes, "l")
    assert "broke off" in caplog.text


async def test_a_watch_that_writers_have_forgotten_begins_anew(url: str) -> None:
    async with from_url(url) as store:
        listener_of(store)._renewal_seconds = 0.1
        changes = store.watch("p", "")
        assert (await anext(changes)).kind is ChangeKind.RESYNC
        # As if this process had been stopped for a minute.
        await sql(url, "UPDATE {s}.watchers SET expires = now()")
        async with asyncio.timeout(20):
            assert (await anext(changes)).kind is ChangeKind.RESYNC
        assert await sql(url, "SELECT p FROM {s}.watchers WHERE expires > now()") == [("p",)]


async def test_a_change_of_many_keys_or_of_a_whole_family_is_told(url: str) -> None:
    async with from_url(url) as writer, from_url(url) as watcher:
        changes = watcher.watch("", "")
        assert (await anext(changes)).kind is ChangeKind.RESYNC
        await writer.multi([put(f"{'k' * 200}||{n}") for n in range(100)])
        await told(changes, f"{'k' * 200}||99")
        await writer.multi([put(f"{'k' * 2000}{n}") for n in range(100)])
        assert (await anext(changes)).kind is ChangeKind.RESYNC
        await writer.delete_with_prefix("", "k" * 200)
        assert (await anext(changes)).kind is ChangeKind.RESYNC


@pytest.mark.parametrize(
    "changed",
    [["a"], ["ü" * 1000] * 3, ['"\\\n\t'] * 100, [f"key/{n}" for n in range(3000)]],
)
def test_payloads_are_short_and_whole(changed: list[str]) -> None:
    texts = payloads(Notice(-(2**63), changed))
    assert all(len(text.encode()) < 8000 for text in texts)
    notices = [read_payload(text) for text in texts]
    assert {notice.partition for notice in notices} == {-(2**63)}
    assert [key for notice in notices for key in notice.keys or ()] == changed


@pytest.mark.parametrize("changed", [None, ["\x01" * 2000], [f"{'k' * 1000}{n}" for n in range(100)]])
def test_what_is_too_long_to_tell_is_told_as_any_key(changed: list[str] | None) -> None:
    (text,) = payloads(Notice(1, changed))
    assert read_payload(text) == Notice(1, None)
