"""What is special to the store on Redis and Valkey: its layout, and what a server can answer with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import NoneType
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from persistence import (
    Change,
    ChangeKind,
    CommitOutcomeUnknownError,
    Consistency,
    DeleteRequest,
    Feature,
    FeatureMissingError,
    GetRequest,
    InvalidRequestError,
    SetOptions,
    SetRequest,
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
)
from persistence.stores.redis import RedisStore, from_url
from tests.conftest import NewServer
from tests.support.redis_commands import execute
from tests.support.relay import Relay
from tests.support.servers import Server
from tests.support.servers._server import LocalServer

pytestmark = pytest.mark.server
BOTH: Final = pytest.mark.parametrize("kind", ["redis", "valkey"])
RESYNC: Final = Change(ChangeKind.RESYNC)
ServerOf = Callable[[str], Server]


@pytest.fixture
def kind() -> str:
    return "valkey"


@pytest.fixture
def server(kind: str, server_of: ServerOf) -> Server:
    return server_of(kind)


@pytest.fixture
def url(server: Server) -> str:
    return server.fresh_url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisStore]:
    async with from_url(url) as store:
        yield store


@pytest.fixture
async def raw(server: Server) -> AsyncIterator[Redis]:
    async with Redis(port=server.port, protocol=2) as raw:
        yield raw


@pytest.fixture
async def own(new_server: NewServer) -> AsyncIterator[Redis]:
    """A server of the test's own, whose settings it may change."""
    async with Redis(port=new_server("valkey").port, protocol=2) as raw:
        yield raw


def prefix_of(url: str) -> str:
    return url.partition("prefix=")[2]


def url_of(raw: Redis, **options: str) -> str:
    port = raw.connection_pool.connection_kwargs["port"]
    return f"redis://127.0.0.1:{port}/0?" + "&".join(f"{name}={text}" for name, text in options.items())


def put(key: str, value: bytes = b"value", *, partition: str = "p", **metadata: str) -> SetRequest:
    return SetRequest(partition=partition, key=key, value=value, metadata=metadata)


async def get(store: RedisStore, key: str) -> bytes | None:
    return (await store.get(GetRequest(partition="p", key=key))).data


async def eventually(check: Callable[[], Any], expected: object) -> None:
    """Wait until something asynchronous has come to be."""
    async with asyncio.timeout(20):
        while await check() != expected:  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0.01)


class Having:
    """Equal to a mapping that has these items."""

    def __init__(self, **items: object) -> None:
        self._items = items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and self._items.items() <= other.items()

    __hash__ = None  # type: ignore[assignment]  # it is for comparing


# The layout


@BOTH
async def test_rows_lie_as_documented(store: RedisStore, url: str, raw: Redis) -> None:
    prefix = prefix_of(url)
    etag = await store.multi([put("plain"), put("typed", contentType="text/plain")])
    place = f"{prefix}{{p}}"
    assert await raw.get(f"{place}r:plain") == etag.encode() + b"0value"
    assert await raw.get(f"{place}r:typed") == etag.encode() + b"10000000atext/plainvalue"
    assert await raw.zrange(f"{place}i", 0, -1, withscores=True) == [(b"plain", 0.0), (b"typed", 0.0)]
    etag = await store.multi(
        [put("soon", ttlInSeconds="100"), put("both", ttlInSeconds="9", contentType="a")]
    )
    moment = b"%015d" % await raw.pexpiretime(f"{place}r:soon")
    assert await raw.get(f"{place}r:soon") == etag.encode() + b"2" + moment + b"value"
    moment = b"%015d" % await raw.pexpiretime(f"{place}r:both")
    assert await raw.get(f"{place}r:both") == etag.encode() + b"3" + moment + b"00000001avalue"
    assert await raw.hgetall(f"{prefix}meta") == {
        b"application": b"hsm-toolkit",
        b"version": b"1",
        b"oldest": b"1",
    }


@pytest.mark.parametrize(
    ("partition", "tag"),
    [("", "%"), ("%", "%25"), ("a}b{c", "a%7Db{c"), ("%7D", "%257D"), ("{", "{"), ("}", "%7D")],
)
async def test_partition_is_one_hash_tag(
    partition: str, tag: str, store: RedisStore, url: str, raw: Redis
) -> None:
    await store.multi([put("key", partition=partition)])
    name = f"{prefix_of(url)}{{{tag}}}r:key"
    assert await raw.exists(name)
    assert name[name.index("{") + 1 : name.index("}")] == tag


async def test_nothing_is_left_of_rows_that_are_deleted(store: RedisStore, url: str, raw: Redis) -> None:
    await store.multi([put("a"), put("b")])
    await store.multi([DeleteRequest(partition="p", key=key) for key in ("a", "b", "c")])
    logs = [name async for name in raw.scan_iter(f"{prefix_of(url)}{{p}}*")]
    assert len(logs) == 1
    assert 0 < await raw.pttl(logs[0]) <= 600_000


async def test_scan_removes_what_expired_rows_leave_behind(store: RedisStore, url: str, raw: Redis) -> None:
    names = [f"{number:05}" for number in range(3000)]
    index = f"{prefix_of(url)}{{p}}i"
    await raw.zadd(index, dict.fromkeys(names, 0))
    await store.multi([put("00010"), put("02500")])
    found = [item.key async for item in store.scan("p", "", "", limit=2)]
    assert found == ["00010", "02500"]
    assert [item.key async for item in store.scan("p", "", "", reverse=True)] == ["02500", "00010"]
    assert await raw.zrange(index, 0, -1) == [b"00010", b"02500"]


async def test_slow_walk_removes_what_expired_rows_leave_behind(
    store: RedisStore, url: str, raw: Redis
) -> None:
    places = [f"{prefix_of(url)}{{{tag}}}i" for tag in ("%", "a%7Db", "p", "p2")]
    for place in places:
        await raw.zadd(place, {f"stale{number}": 0 for number in range(1000)})
    await store.multi([put("key")])
    foreign = f"{prefix_of(url)}{{p}}r:{{x}}i"
    await raw.zadd(foreign, {"stale": 0})
    async with from_url(f"{url}&cleanup_interval=0.01"):
        for place, left in zip(places, [0, 0, 1, 0], strict=True):
            await eventually(partial(raw.zcard, place), left)
    assert await raw.zcard(foreign) == 1
    assert await get(store, "key") == b"value"


# Foreign data, versions, options


@BOTH
async def test_foreign_key_in_the_place_of_a_row_is_named_and_kept(
    store: RedisStore, url: str, raw: Redis
) -> None:
    name = f"{prefix_of(url)}{{p}}r:foreign"
    await raw.rpush(name, "theirs")
    multis = [[put("a")], [put("b"), put("foreign"), put("c")], [put("d")]]
    outcomes = await asyncio.gather(*(store.multi(multi) for multi in multis), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [str, StoreCorruptError, str]
    assert name in str(outcomes[1])
    assert await raw.lrange(name, 0, -1) == [b"theirs"]
    assert [item.key async for item in store.scan("p", "", "")] == ["a", "d"]


@BOTH
async def test_foreign_keys_fail_those_who_read_them_and_nobody_else(
    store: RedisStore, url: str, raw: Redis
) -> None:
    names = {kind: f"{prefix_of(url)}{{p}}r:{kind}" for kind in ("string", "list")}
    await store.multi([put("a")])
    await raw.set(names["string"], "theirs")
    await raw.rpush(names["list"], "theirs")
    asked = ("a", "string", "list", "absent")
    outcomes = await asyncio.gather(*(get(store, key) for key in asked), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [bytes, StoreCorruptError, StoreCorruptError, NoneType]
    for kind, outcome in zip(names, outcomes[1:3], strict=True):
        assert names[kind] in str(outcome)
        with pytest.raises(StoreCorruptError, match=kind):
            await get(store, kind)


@BOTH
async def test_foreign_index_is_named_and_nothing_is_written(store: RedisStore, url: str, raw: Redis) -> None:
    await raw.set(f"{prefix_of(url)}{{p}}i", "theirs")
    with pytest.raises(StoreCorruptError):
        await store.multi([put("key")])
    with pytest.raises(StoreCorruptError):
        _ = [item async for item in store.scan("p", "", "")]
    assert await get(store, "key") is None
    await store.multi([put("key", partition="other")])


async def test_string_that_is_no_row_is_named(store: RedisStore, url: str, raw: Redis) -> None:
    await store.multi([put("key")])
    name = f"{prefix_of(url)}{{p}}r:key"
    await raw.set(name, "theirs")
    with pytest.raises(StoreCorruptError, match="key"):
        await get(store, "key")
    with pytest.raises(StoreCorruptError, match="key"):
        _ = [item async for item in store.scan("p", "", "")]


@pytest.mark.parametrize(
    "fields", [{"application": "theirs", "version": "1", "oldest": "1"}, {"application": "hsm-toolkit"}]
)
async def test_mark_of_somebody_else_is_left_alone(fields: dict[str, str], url: str, raw: Redis) -> None:
    name = f"{prefix_of(url)}meta"
    for field, text in fields.items():
        await raw.hset(name, field, text)
    with pytest.raises(StoreCorruptError, match=name):
        await from_url(url).__aenter__()
    assert await raw.hlen(name) == len(fields)
    assert len([key async for key in raw.scan_iter(f"{prefix_of(url)}*")]) == 1


async def test_key_of_another_kind_in_the_place_of_the_mark_is_left_alone(url: str, raw: Redis) -> None:
    name = f"{prefix_of(url)}meta"
    await raw.set(name, "theirs")
    with pytest.raises(StoreCorruptError, match=name):
        await from_url(url).__aenter__()
    assert await raw.get(name) == b"theirs"


async def test_newer_layout_is_used_if_it_says_that_it_can_be(url: str, raw: Redis) -> None:
    name = f"{prefix_of(url)}meta"
    for field, text in {"application": "hsm-toolkit", "version": "7", "oldest": "1"}.items():
        await raw.hset(name, field, text)
    async with from_url(url) as store:
        await store.multi([put("key")])
    assert await raw.hget(name, "version") == b"7"
    await raw.hset(name, "oldest", "2")
    with pytest.raises(StoreCorruptError, match="version 7"):
        await from_url(url).__aenter__()


async def test_store_that_is_not_there_is_not_made_unless_asked_for(url: str, raw: Redis) -> None:
    with pytest.raises(StoreUnavailableError, match="there is no store in Redis"):
        await from_url(f"{url}&create=false").__aenter__()
    assert not [key async for key in raw.scan_iter(f"{prefix_of(url)}*")]
    async with from_url(url):
        pass
    async with from_url(f"{url}&create=false") as store:
        await store.multi([put("key")])


@pytest.mark.parametrize(
    "wrong",
    [
        "redis://host/name",
        "redis+cluster://host/1",
        "redis://host?prefix=",
        "redis://host?prefix=a{b}",
        "redis://host?lanes=0",
        "redis+cluster://host?nodes=host",
        "redis+cluster://host?nodes=host:99999",
        "redis://host/" + "9" * 5000,
    ],
)
def test_bad_urls_and_options_are_refused(wrong: str) -> None:
    with pytest.raises(InvalidRequestError):
        from_url(wrong)


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_databases_are_apart(scheme: str, url: str) -> None:
    first, second = (
        url.replace("redis://", f"{scheme}://").replace("/0?", f"/{number}?") for number in (0, 1)
    )
    async with from_url(first) as one, from_url(second) as other:
        await one.multi([put("key")])
        assert await get(other, "key") is None


# What a server is set to, and what it answers with


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, "loses nothing"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "last second"),
        ({"appendonly": "yes", "appendfsync": "no"}, "half minute"),
        ({"appendonly": "no", "save": "3600 1"}, "last snapshot"),
        ({"appendonly": "no", "save": ""}, "loses everything"),
    ],
)
async def test_store_says_what_a_crash_can_lose(settings: dict[str, str], words: str, own: Redis) -> None:
    for name, setting in settings.items():
        await own.config_set(name, setting)
    async with from_url(url_of(own)) as store:
        assert words in store.durability


@BOTH
async def test_store_says_what_it_is_connected_to(kind: str, store: RedisStore) -> None:
    assert store.server_version.startswith(kind.title())


async def test_server_that_throws_rows_away_is_refused_unless_asked_for(own: Redis) -> None:
    await own.config_set("maxmemory-policy", "volatile-lru")
    with pytest.raises(StoreUnavailableError, match="volatile-lru"):
        await from_url(url_of(own)).__aenter__()
    async with from_url(url_of(own, allow_eviction="true")) as store:
        await store.multi([put("key")])


async def test_server_that_begins_to_throw_rows_away_takes_no_writes_until_it_keeps_them(own: Redis) -> None:
    async with from_url(url_of(own)) as store, from_url(url_of(own, allow_eviction="true")) as careless:
        await store.multi([put("key")])
        await own.config_set("maxmemory-policy", "allkeys-lru")
        for each in (store, careless):
            # As after a failover, the next connection leads to a server that is set up in another way.
            await execute(own, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            if each is store:
                with pytest.raises(StoreUnavailableError, match="allkeys-lru"):
                    await each.multi([put("key", b"new")])
            else:
                await each.multi([put("key", b"careless")])
        await own.config_set("maxmemory-policy", "noeviction")
        await store.multi([put("key", b"new")])
        assert await get(store, "key") == b"new"


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(store: RedisStore, raw: Redis) -> None:
    await store.multi([put("before")])
    await raw.script_flush()
    multis = [store.multi([put(f"key{number}", partition=f"p{number}")]) for number in range(20)]
    assert len(set(await asyncio.gather(*multis))) == 20
    await raw.script_flush()
    assert [item.key async for item in store.scan("p0", "", "")] == ["key0"]


async def test_full_server_writes_nothing_and_recovers(own: Redis) -> None:
    async with from_url(url_of(own)) as store:
        await store.multi([put("key", b"old")])
        await own.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailableError, match="memory"):
            await store.multi([put("key"), put("other")])
        assert await get(store, "key") == b"old"
        await own.config_set("maxmemory", "0")
        await store.multi([put("key")])
        assert [item.key async for item in store.scan("p", "", "")] == ["key"]


async def test_server_that_cannot_write_to_its_disk_writes_nothing_and_recovers(
    new_server: NewServer,
) -> None:
    server = new_server("valkey")
    assert isinstance(server, LocalServer)
    async with Redis(port=server.port, protocol=2) as own, from_url(url_of(own)) as store:

        async def save() -> str:
            await own.bgsave()
            await eventually(lambda: own.info("persistence"), Having(rdb_bgsave_in_progress=0))
            return str((await own.info("persistence"))["rdb_last_bgsave_status"])

        await own.config_set("save", "3600 1")
        obstacle = server.data / "dump.rdb"
        obstacle.mkdir()
        assert await save() == "err"
        with pytest.raises(StoreUnavailableError, match="MISCONF"):
            await store.multi([put("key")])
        obstacle.rmdir()
        assert await save() == "ok"
        assert await get(store, "key") is None
        await store.multi([put("key")])


async def test_server_that_becomes_a_replica_refuses_writes(own: Redis) -> None:
    async with from_url(url_of(own)) as store:
        await store.multi([put("key")])
        await execute(own, "REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailableError):
            await store.multi([put("key")])
        with pytest.raises(StoreUnavailableError, match="replica"):
            await from_url(url_of(own)).__aenter__()
        await execute(own, "REPLICAOF", "NO", "ONE")
        await store.multi([put("key")])


async def test_nothing_is_read_from_a_server_whose_place_another_one_has_taken(new_server: NewServer) -> None:
    first, second = new_server("valkey"), new_server("valkey")
    async with (
        Redis(port=first.port, protocol=2) as old,
        Redis(port=second.port, protocol=2) as new,
        Relay.to(first.port) as name,
    ):
        await execute(new, "REPLICAOF", "127.0.0.1", str(first.port))
        async with from_url(f"redis://127.0.0.1:{name.port}/0") as store:
            await store.multi([put("key", b"1")])
            assert await get(store, "key") == b"1"
            await eventually(partial(new.exists, "hsm:{p}r:key"), 1)
            await execute(new, "REPLICAOF", "NO", "ONE")
            # It serves what it has, and gets nothing new.
            await execute(old, "REPLICAOF", "127.0.0.1", "1")
            name.redirect(second.port)
            with pytest.raises(StoreUnavailableError, match="replica"):
                await store.multi([put("key", b"2")])
            await store.multi([put("key", b"3")])
            assert await get(store, "key") == b"3"


async def test_server_that_runs_a_long_script_is_busy(own: Redis) -> None:
    await own.config_set("lua-time-limit", "20")
    async with from_url(url_of(own)) as store:
        await store.multi([put("key")])
        script = asyncio.create_task(execute(own, "EVAL", "while true do end", "0"))

        async def is_busy() -> bool:
            try:
                await get(store, "key")
            except StoreBusyError:
                return True
            return False

        await eventually(is_busy, True)
        with pytest.raises(StoreBusyError):
            await store.multi([put("key", b"new")])
        await execute(own, "SCRIPT", "KILL")
        await asyncio.gather(script, return_exceptions=True)
        assert await get(store, "key") == b"value"
        await store.multi([put("key", b"new")])


@BOTH
async def test_server_that_is_killed_and_comes_back(kind: str, new_server: NewServer) -> None:
    server = new_server(kind, durable=True)
    async with from_url(f"{server.fresh_url()}&connect_timeout=1") as store:
        await store.multi([put("key")])
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=str(server.port)):
                await get(store, "key")
        # The lane's connection may have been thought alive, and then the outcome is not known.
        with pytest.raises((StoreUnavailableError, CommitOutcomeUnknownError)):
            await store.multi([put("other")])
        with pytest.raises(StoreUnavailableError, match=str(server.port)):
            await store.multi([put("other")])
        server.start()
        assert await get(store, "key") == b"value"
        await store.multi([put("other")])
        await store.ping()


async def test_those_who_wait_for_a_server_that_hangs_give_up_as_well(new_server: NewServer) -> None:
    server = new_server("valkey")
    async with from_url(f"{server.fresh_url()}&readers=1&request_timeout=0.5") as store:
        await store.multi([put("key")])
        server.pause()
        scans = [asyncio.ensure_future(anext(store.scan("p", "", ""))) for _ in range(10)]
        failures = await asyncio.gather(*scans, return_exceptions=True)
        server.resume()
        assert all(isinstance(failure, StoreUnavailableError) for failure in failures)
        # One has asked, and perhaps the one after it; the others have not waited for their turn to ask.
        assert sum("readers are busy" in str(failure) for failure in failures) >= 8
        assert await get(store, "key") == b"value"


# Rights


async def as_user(own: Redis, *rules: str) -> str:
    await execute(own, "ACL", "SETUSER", "limited", "reset", "on", ">secret", *rules)
    return url_of(own).replace("redis://", "redis://limited:secret@")


async def test_user_with_few_rights_will_do(own: Redis) -> None:
    limited = await as_user(
        own,
        "~hsm:*",
        "&hsm:*",
        "+@all",
        "-@admin",
        "-@dangerous",
        "+info",
    )
    async with from_url(limited) as store:
        await store.multi([put("key")])
        assert "CONFIG is forbidden" in store.durability or "loses" in store.durability
        assert Feature.WATCH in store.features


async def test_user_who_may_not_publish_cannot_watch(own: Redis) -> None:
    async with from_url(await as_user(own, "~hsm:*", "+@all")) as store:
        await store.multi([put("key")])
        assert Feature.WATCH not in store.features
        with pytest.raises(FeatureMissingError):
            store.watch("p", "")


@pytest.mark.parametrize("forbidden", ["zrem", "mset", "set", "del", "time", "evalsha"])
async def test_right_that_is_missing_is_told_when_the_store_is_opened(forbidden: str, own: Redis) -> None:
    limited = await as_user(own, "~hsm:*", "&hsm:*", "+@all", f"-{forbidden}")
    with pytest.raises(StoreUnavailableError, match="refuses"):
        await from_url(limited).__aenter__()
    assert not await own.keys("hsm:*r:*") or forbidden in {"del", "zrem"}


async def test_server_with_tls_and_password(new_server: NewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = new_server("redis", tls=True, password="it's/@ \\secret:")
    url = server.fresh_url()
    async with from_url(url) as store:
        await store.multi([put("key")])
        assert "secret" not in repr(store)
    with pytest.raises(StoreUnavailableError, match=r"(?i)certificate"):
        await from_url(f"{url.partition('tls_ca')[0]}lanes=1").__aenter__()
    bare = "rediss://" + url.partition("@")[2]
    with pytest.raises(StoreUnavailableError, match=r"(?i)auth"):
        await from_url(bare).__aenter__()
    monkeypatch.setenv("REDISCLI_AUTH", "it's/@ \\secret:")
    async with from_url(bare) as store:
        assert await get(store, "key") == b"value"


# Replicas


async def test_strong_write_waits_for_the_replicas(new_server: NewServer) -> None:
    master, replica = new_server("valkey"), new_server("valkey")
    async with Redis(port=replica.port, protocol=2) as raw:
        await execute(raw, "REPLICAOF", "127.0.0.1", str(master.port))

        async def linked() -> str:
            return str((await raw.info("replication"))["master_link_status"])

        await eventually(linked, "up")
    async with from_url(f"{master.fresh_url()}&wait_timeout=0.3") as store:
        options = SetOptions(consistency=Consistency.STRONG)
        strong = SetRequest(partition="p", key="key", value=b"strong", options=options)
        await store.set(strong)
        replica.pause()
        try:
            with pytest.raises(CommitOutcomeUnknownError, match="0 of 1 replicas"):
                await store.set(strong)
            await store.multi([put("other")])
        finally:
            replica.resume()
        assert await get(store, "key") == b"strong"
        await store.set(strong)


# Watching


async def next_change(watch: AsyncIterator[Change]) -> Change:
    async with asyncio.timeout(20):
        return await anext(watch)


async def test_watch_goes_on_after_its_server_was_killed(new_server: NewServer) -> None:
    server = new_server("valkey", durable=True)
    url = server.fresh_url()
    async with from_url(url) as store, from_url(url) as other:
        watch, second = store.watch("p", "k"), store.watch("q", "")
        assert await next_change(watch) == RESYNC
        assert await next_change(second) == RESYNC
        await other.multi([put("key")])
        assert await next_change(watch) == Change(ChangeKind.KEY, "key")
        server.kill()
        server.start()
        assert await next_change(watch) == RESYNC
        assert await next_change(second) == RESYNC
        await other.multi([put("other"), put("key2")])
        assert await next_change(watch) == Change(ChangeKind.KEY, "key2")
        await other.multi([put("key", partition="q")])
        assert await next_change(second) == Change(ChangeKind.KEY, "key")


async def test_watches_of_one_partition_share_a_channel(store: RedisStore, url: str, raw: Redis) -> None:
    watches = [store.watch("p", "") for _ in range(3)]
    for watch in watches:
        assert await next_change(watch) == RESYNC
    (channel,) = await raw.pubsub_channels(f"{prefix_of(url)}*")
    assert channel == f"{prefix_of(url)}{{p}}w0".encode()
    assert await raw.pubsub_numsub(channel) == [(channel, 1)]
