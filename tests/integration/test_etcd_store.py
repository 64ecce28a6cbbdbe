"""What is particular to the etcd store: revisions, leases, shared requests, watches, its mark, TLS."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from persistence import (
    ABSENT,
    Change,
    ChangeKind,
    CheckRequest,
    DeleteRequest,
    ETagMismatchError,
    GetRequest,
    Metadata,
    SetRequest,
    StoreCorruptError,
    StoreUnavailableError,
)
from persistence.stores.etcd import EtcdStore, from_url
from persistence.stores.etcd.reading import Reader
from tests.conftest import NewServer
from tests.support.servers import Server
from tests.support.servers._etcd import EtcdServer

pytestmark = pytest.mark.server

ServerOf = Callable[[str], Server]


def put(key: str, value: bytes = b"", *, etag: str | None = None, ttl: int = 0) -> SetRequest:
    metadata = {"ttlInSeconds": str(ttl)}
    return SetRequest(partition="p", key=key, value=value, etag=etag, metadata=metadata)


async def etag_of(store: EtcdStore, key: str) -> str:
    etag = (await store.get(GetRequest(partition="p", key=key))).etag
    assert etag is not None
    return etag


@attrs.frozen
class Raw:
    """A server as others see it."""

    server: Server

    def call(self, method: str, **arguments: str) -> Any:
        assert isinstance(self.server, EtcdServer)
        return self.server.gateway.call(f"/v3/{method}", arguments)

    def keys(self, prefix: str) -> list[bytes]:
        first = prefix.encode()
        answer = self.call("kv/range", key=encoded(first), range_end=encoded(first[:-1] + b"0"))
        return [base64.b64decode(row["key"]) for row in answer.get("kvs", [])]

    def put(self, key: str, value: str) -> None:
        self.call("kv/put", key=encoded(key.encode()), value=encoded(value.encode()))

    def leases(self) -> set[str]:
        return {lease["ID"] for lease in self.call("lease/leases").get("leases", [])}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def place(server_of: ServerOf) -> tuple[Raw, str, str]:
    """The server, a URL of an empty place on it, and the prefix of all keys there."""
    server = server_of("etcd")
    if not server.controllable:
        pytest.skip("somebody else's server")
    url = server.fresh_url()
    return Raw(server), url, url.partition("prefix=")[2]


Place = tuple[Raw, str, str]


async def test_multis_at_once_share_a_revision_and_one_that_fails_does_not(place: Place) -> None:
    async with from_url(place[1]) as store:
        fence = await store.multi([put("fence")])
        outcomes = await asyncio.gather(
            *(store.multi([CheckRequest("p", "fence", fence), put(f"{number}")]) for number in range(50)),
            store.multi([CheckRequest("p", "fence", ABSENT), put("never")]),
            return_exceptions=True,
        )
        assert len({outcome for outcome in outcomes if isinstance(outcome, str)}) == 1
        refused = outcomes[-1]
        assert isinstance(refused, ETagMismatchError)
        assert (refused.partition, refused.key) == ("p", "fence")
        assert fence in str(refused)
        assert await etag_of(store, "49") == outcomes[49]


async def test_losers_of_a_race_learn_it_from_the_winner(place: Place) -> None:
    async with from_url(place[1]) as store:
        etag = await store.multi([put("hot")])
        outcomes = await asyncio.gather(
            *(store.multi([put("hot", etag=etag)]) for _ in range(50)), return_exceptions=True
        )
        winners = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert len(winners) == 1
        # One revision is the winner's; no request was made for the others.
        assert int(winners[0], 16) == int(etag, 16) + 1
        assert int(await store.multi([put("other")]), 16) == int(etag, 16) + 2
        assert all(winners[0] in str(outcome) for outcome in outcomes if outcome != winners[0])


async def test_writes_of_one_key_at_once_all_take_place(place: Place) -> None:
    async with from_url(place[1]) as store:
        etags = await asyncio.gather(*(store.multi([put("hot", b"%d" % number)]) for number in range(10)))
        assert len(set(etags)) == 10
        assert await etag_of(store, "hot") == max(etags)


async def test_etag_that_no_row_can_have_is_a_mismatch(place: Place) -> None:
    async with from_url(place[1]) as store:
        await store.set(put("there"))
        for key in ("there", "absent"):
            for etag in ("0" * 16, "f" * 16, "8" + "0" * 15):
                with pytest.raises(ETagMismatchError):
                    await store.set(put(key, etag=etag))
        assert [item.key async for item in store.scan("p", "", "")] == ["there"]


async def test_rows_of_one_time_to_live_share_a_lease_and_refused_ones_leave_none(
    new_server: NewServer,
) -> None:
    raw = Raw(new_server("etcd"))
    url = raw.server.fresh_url()
    async with from_url(url) as store:
        await store.set(put("first"))
        before = raw.leases()
        multis = [
            store.multi([put(f"{number}", ttl=1000), put(f"{number}/b", ttl=1000)]) for number in range(10)
        ]
        await asyncio.gather(*multis)
        assert len(raw.leases() - before) == 1
        shared = raw.leases()
        with pytest.raises(ETagMismatchError):
            await store.multi([CheckRequest("p", "first", ABSENT), put("never", ttl=2000)])
    # Closing gives back what is not used, the lease of the store's own mark included.
    assert raw.leases() == shared - before
    assert not [key for key in raw.keys(url.partition("prefix=")[2]) if b"commit/" in key]


async def test_expiry_is_told_to_watches(place: Place) -> None:
    async with from_url(place[1]) as store:
        changes = store.watch("p", "short")
        await store.set(put("short", ttl=1))
        assert (await anext(changes)).key == "short"
        async with asyncio.timeout(30):
            assert (await anext(changes)).key == "short"
        assert (await store.get(GetRequest(partition="p", key="short"))).data is None


async def test_watches_of_one_prefix_share_the_stream_and_go_when_nobody_reads(place: Place) -> None:
    async with from_url(place[1]) as store, from_url(place[1]) as other:
        first, second, wide = store.watch("p", "a"), store.watch("p", "a"), store.watch("p", "")
        await other.set(put("a"))
        for changes in (first, second, wide):
            assert (await anext(changes)).key == "a"
        del first, changes
        await other.set(put("a"))
        assert (await anext(second)).key == "a"
        assert (await anext(wide)).key == "a"
        del second
        await other.set(put("a"))
        assert (await anext(wide)).key == "a"
        again = store.watch("p", "a")
        await other.set(put("a/b"))
        # It may also tell of what came just before it was asked for.
        while (await anext(again)).key != "a/b":
            pass


async def test_watch_begins_when_it_is_asked_for_and_not_before(place: Place) -> None:
    async with from_url(place[1]) as store:
        await asyncio.gather(*(store.set(put(f"{number}")) for number in range(100)))
        changes = store.watch("p", "")
        await store.set(put("after"))
        assert await anext(changes) == Change(ChangeKind.KEY, "after")


async def test_deleting_a_family_counts_what_was_there(place: Place) -> None:
    async with from_url(place[1]) as store:
        await asyncio.gather(
            *(store.set(put(f"family||{number:04}")) for number in range(300)),
            store.set(put("family||1||2")),
            store.set(put("family")),
        )
        assert await store.delete_with_prefix("p", "family") == 300
        assert [item.key async for item in store.scan("p", "", "")] == ["family", "family||1||2"]


async def test_pages_of_large_rows_are_read_both_ways(place: Place) -> None:
    async with from_url(place[1]) as store:
        rows = {f"{number:02}": bytes([number]) * 900_000 for number in range(20)}
        await asyncio.gather(*(store.set(put(key, value)) for key, value in rows.items()))
        for _ in range(2):
            assert {item.key: item.value async for item in store.scan("p", "", "")} == rows
        assert [item.key async for item in store.scan("p", "", "", reverse=True)] == sorted(
            rows, reverse=True
        )
        found = await store.bulk_get([GetRequest(partition="p", key=key) for key in rows])
        assert [row.data for row in found] == list(rows.values())


async def test_no_answer_is_larger_than_there_is_room_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = Reader._read

    async def noted(*args: Any, **options: Any) -> Any:
        answer = await read(*args, **options)
        sizes.append(answer.ByteSize())
        return answer

    monkeypatch.setattr(Reader, "_read", noted)
    async with from_url(place[1]) as store:
        small = {f"a{number:03}": b"" for number in range(200)}
        large = {f"b{number:03}": bytes([number]) * 1_000_000 for number in range(40)}
        await asyncio.gather(*(store.set(put(key, value)) for key, value in (small | large).items()))
        found = {item.key: item.value async for item in store.scan("p", "", "")}
        assert found == small | large
        answers = await store.bulk_get([GetRequest(partition="p", key=key) for key in large])
        assert [answer.data for answer in answers] == list(large.values())
    assert max(sizes) < 32 * 1024 * 1024


async def test_damaged_row_fails_its_readers_and_nobody_else(place: Place) -> None:
    raw, url, prefix = place
    async with from_url(url) as store:
        await store.set(put("good"))
        raw.put(f"{prefix}\0p\0bad", "not ours")
        good, bad, absent = await store.bulk_get(
            [GetRequest(partition="p", key=key) for key in ("good", "bad", "absent")]
        )
    assert (good.data, good.error, absent.data, absent.error) == (b"", None, None, None)
    assert isinstance(bad.error, StoreCorruptError)


@pytest.mark.parametrize("name", ["connect_timeout", "request_timeout"])
async def test_time_out_of_ages_is_as_good_as_none(place: Place, name: str) -> None:
    async with from_url(f"{place[1]}&{name}=8e13") as store:
        await store.set(put("key", ttl=5))
        assert await etag_of(store, "key")


async def test_prefixes_are_apart(place: Place) -> None:
    _, url, _ = place
    async with from_url(url) as store, from_url(f"{url}p/") as inner:
        await store.set(put("key", b"outer"))
        await inner.set(put("key", b"inner"))
        assert [item.value async for item in store.scan("p", "", "")] == [b"outer"]
        assert [item.value async for item in inner.scan("p", "", "")] == [b"inner"]


async def test_keys_of_somebody_else_are_left_alone(place: Place) -> None:
    raw, url, prefix = place
    raw.put(f"{prefix}config", "theirs")
    with pytest.raises(StoreCorruptError, match="config"):
        await from_url(url).init(Metadata())
    assert raw.keys(prefix) == [f"{prefix}config".encode()]


@pytest.mark.parametrize(
    "mark", ["theirs", "{}", "[]", '{"application": "other", "version": 1, "oldest": 1}']
)
async def test_mark_of_somebody_else_is_left_alone(place: Place, mark: str) -> None:
    raw, url, prefix = place
    raw.put(f"{prefix}meta", mark)
    with pytest.raises(StoreCorruptError, match="mark"):
        await from_url(url).init(Metadata())


@pytest.mark.parametrize(("oldest", "opens"), [(1, True), (2, False)])
async def test_newer_release_says_whether_this_one_may_go_on(
    place: Place, oldest: int, *, opens: bool
) -> None:
    raw, url, prefix = place
    async with from_url(url) as store:
        await store.set(put("key", b"value"))
    raw.put(f"{prefix}meta", json.dumps({"application": "hsm-toolkit", "version": 2, "oldest": oldest}))
    if opens:
        async with from_url(url) as store:
            assert (await store.get(GetRequest(partition="p", key="key"))).data == b"value"
    else:
        with pytest.raises(StoreCorruptError, match="version 2"):
            await from_url(url).init(Metadata())


async def test_store_that_is_not_there_is_made_only_if_wanted(place: Place) -> None:
    raw, url, prefix = place
    with pytest.raises(StoreUnavailableError, match="no store"):
        await from_url(url).init(Metadata({"create": "false"}))
    assert raw.keys(prefix) == []
    stores = [from_url(url) for _ in range(5)]
    await asyncio.gather(*(store.init(Metadata()) for store in stores))
    await asyncio.gather(*(store.aclose() for store in stores))
    async with from_url(f"{url}&create=false") as store:
        await store.ping()


async def test_damaged_row_is_named(place: Place) -> None:
    raw, url, prefix = place
    async with from_url(url) as store:
        await store.set(put("good"))
        raw.put(f"{prefix}\0p\0bad", "not ours")
        with pytest.raises(StoreCorruptError, match="bad"):
            await store.get(GetRequest(partition="p", key="bad"))
        await store.delete(DeleteRequest(partition="p", key="bad"))
        await store.set(put("good"))


async def test_mark_that_somebody_deletes_is_made_anew(place: Place) -> None:
    raw, url, prefix = place
    async with from_url(url) as store:
        await store.set(put("key"))
        (mark,) = [key for key in raw.keys(prefix) if b"commit/" in key]
        raw.call("kv/deleterange", key=encoded(mark))
        await asyncio.gather(*(store.set(put(f"{number}")) for number in range(10)))


async def test_encrypted_connection_is_checked(new_server: NewServer, tmp_path: Any) -> None:
    server = new_server("etcd", tls=True)
    async with from_url(server.url) as store:
        await store.set(put("key"))
        assert [item.key async for item in store.scan("p", "", "")] == ["key"]
    without = server.url.replace("tls_ca=", "prefix=").replace("prefix=hsm/&", "")
    impatient = "&connect_timeout=1&request_timeout=2"
    with pytest.raises(StoreUnavailableError, match=str(server.port)):
        await from_url(without + impatient).init(Metadata())
    with pytest.raises(StoreUnavailableError, match=str(server.port)):
        await from_url(f"etcd://127.0.0.1:{server.port}?" + impatient.strip("&")).init(Metadata())
    with pytest.raises(StoreUnavailableError, match="nowhere"):
        await from_url(f"etcds://127.0.0.1:{server.port}?tls_ca={tmp_path}/nowhere").init(Metadata())


async def test_user_needs_no_more_than_the_prefix(new_server: NewServer) -> None:
    server = new_server("etcd", password="root secret")
    assert isinstance(server, EtcdServer)
    root = server.gateway.as_root("root secret")
    root.call("/v3/auth/role/add", {"name": "hsm"})
    permission = {"permType": "READWRITE", "key": encoded(b"mine/"), "range_end": encoded(b"mine0")}
    arguments: Any = {"name": "hsm", "perm": permission}
    root.call("/v3/auth/role/grant", arguments)
    root.call("/v3/auth/user/add", {"name": "me", "password": "it's mine"})
    root.call("/v3/auth/user/grant", {"user": "me", "role": "hsm"})
    url = f"etcd://me:it%27s%20mine@127.0.0.1:{server.port}/"
    async with from_url(f"{url}?prefix=mine/") as store:
        changes = store.watch("p", "")
        await asyncio.gather(*(store.set(put(f"{number}", ttl=1000)) for number in range(10)))
        assert (await anext(changes)).kind is ChangeKind.KEY
        assert await store.delete_with_prefix("p", "x") == 0
        assert len([item async for item in store.scan("p", "", "")]) == 10
    with pytest.raises(StoreUnavailableError, match="permission"):
        await from_url(f"{url}?prefix=theirs/").init(Metadata())


async def test_lanes_go_on_beside_each_other(place: Place) -> None:
    async with from_url(f"{place[1]}&lanes=3") as store:
        requests = [SetRequest(partition=f"{number}", key="key", value=b"") for number in range(30)]
        await asyncio.gather(*(store.set(request) for request in requests))
        found = await store.bulk_get([GetRequest(partition=f"{number}", key="key") for number in range(30)])
        assert all(row.data == b"" for row in found)


def test_end_of_the_program_leaves_nothing_hanging(place: Place) -> None:
    stores: list[EtcdStore] = []

    async def program() -> None:
        store = from_url(place[1])
        stores.append(store)
        await store.init(Metadata())
        changes = store.watch("p", "")
        waiting = [asyncio.create_task(store.set(put(f"{number}"))) for number in range(10)]
        waiting.append(asyncio.create_task(anext(changes)))  # type: ignore[arg-type]  # any task will do
        await asyncio.sleep(0)

    asyncio.run(program())
    assert stores
