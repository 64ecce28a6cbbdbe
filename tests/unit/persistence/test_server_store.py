"""`ServerStore` with a server that is a dictionary and answers when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from persistence import (
    Consistency,
    Feature,
    FeatureMissingError,
    GetOptions,
    GetRequest,
    GetResponse,
    InvalidRequestError,
    Item,
    KeysLikeRequest,
    Limits,
    Metadata,
    SetRequest,
    StoreClosedError,
    StoreUnavailableError,
)
from persistence.batcher import Result, in_task
from persistence.decision import Slot, Transaction, decide, new_etags
from persistence.paging import Page, Window
from persistence.server import ServerStore
from persistence.settings import Properties


class Network:
    """What lies between a store and its rows; counts what goes over it."""

    def __init__(self) -> None:
        self.rows: dict[Slot, tuple[bytes, str]] = {}
        self.passable = asyncio.Event()
        self.passable.set()
        self.arrived = asyncio.Event()
        self.failure: Exception | None = None
        self.calls: list[str] = []
        self.connected = 0

    async def cross(self, what: str) -> None:
        self.calls.append(what)
        self.arrived.set()
        await self.passable.wait()
        if self.failure is not None:
            raise self.failure

    def block(self) -> None:
        self.passable.clear()
        self.arrived.clear()


class DictStore(ServerStore):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.lanes = 0

    def __repr__(self) -> str:
        return "<DictStore>"

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.ETAG, Feature.TRANSACTIONAL, Feature.SCAN, Feature.KEYS_LIKE})

    @property
    def limits(self) -> Limits:
        return Limits(operations=100, transaction_bytes=10_000, key_bytes=100, value_bytes=1000)

    async def _open(self, properties: Mapping[str, str]) -> None:
        with Properties("dict", properties) as options:
            self.lanes = options.whole("lanes", 2, least=1)
        await self.network.cross("open")
        self.network.connected += 1
        self.start_lanes(*(in_task(self._commit) for _ in range(self.lanes)))

    async def _close(self) -> None:
        self.network.connected -= 1
        self.network.calls.append("close")

    async def _commit(self, batch: Sequence[Transaction]) -> Sequence[Result]:
        await self.network.cross("commit")
        stored = {slot: etag for slot, (_, etag) in self.network.rows.items()}
        decision = decide(batch, stored, new_etags(len(batch)))
        for slot, ((_, value, _, _), etag) in decision.writes.items():
            if value is None:
                self.network.rows.pop(slot, None)
            else:
                self.network.rows[slot] = (value, etag)
        return decision.results

    async def _read_rows(self, slots: Sequence[Slot], *, eventual: bool) -> Mapping[Slot, GetResponse]:
        await self.network.cross("read eventual" if eventual else "read")
        assert self.network.connected, "read after the connection was closed"
        rows = self.network.rows
        return {slot: GetResponse(*rows[slot]) for slot in slots if slot in rows}

    async def _read_page(self, window: Window, rows: int) -> Page:
        await self.network.cross("page")
        assert self.network.connected, "read after the connection was closed"
        found = [
            Item(key, *row)
            for (partition, key), row in sorted(self.network.rows.items(), reverse=window.reverse)
            if partition == window.partition
            and (key > window.start if window.after and not window.reverse else key >= window.start)
            and (not window.end or key < window.end)
        ]
        return Page(found[:rows], last=len(found) <= rows)

    async def _delete_family(self, partition: str, family: str) -> int:
        deleted = 0
        for slot in [slot for slot in self.network.rows if slot[0] == partition]:
            if slot[1].startswith(family):
                await self.network.cross("delete")
                assert self.network.connected, "delete after the connection was closed"
                del self.network.rows[slot]
                deleted += 1
        return deleted

    async def _ping(self) -> None:
        await self.network.cross("ping")


@pytest.fixture
async def network() -> Network:
    return Network()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def write(store: DictStore, *keys: str) -> None:
    await store.bulk_set([SetRequest(key=key, value=key.encode()) for key in keys])


async def test_init_opens_once(network: Network) -> None:
    store = DictStore(network)
    await asyncio.gather(*(store.init(Metadata({"lanes": "3"})) for _ in range(3)))
    await store.init(Metadata())
    assert (network.calls, store.lanes) == (["open"], 3)
    await asyncio.gather(store.aclose(), store.aclose())
    await store.aclose()
    assert network.calls == ["open", "close"]


async def test_an_opening_that_failed_can_be_tried_again(network: Network) -> None:
    network.failure = StoreUnavailableError("nobody answers")
    store = DictStore(network)
    with pytest.raises(StoreUnavailableError):
        await store.init(Metadata())
    with pytest.raises(InvalidRequestError, match="lains"):
        await store.init(Metadata({"lains": "3"}))
    with pytest.raises(StoreClosedError):
        await store.get(GetRequest(key="a"))
    network.failure = None
    await store.init(Metadata())
    await write(store, "a")
    await store.aclose()
    assert network.connected == 0


async def test_a_store_that_could_not_be_opened_is_closed_without_more(network: Network) -> None:
    network.failure = StoreUnavailableError("nobody answers")
    store = DictStore(network)
    with pytest.raises(StoreUnavailableError):
        await store.init(Metadata())
    await store.aclose()
    assert network.calls == ["open"]


async def test_a_closed_store_stays_closed(network: Network) -> None:
    async with DictStore(network) as store:
        pass
    with pytest.raises(StoreClosedError):
        await store.init(Metadata())
    for request in (
        store.get(GetRequest(key="a")),
        store.multi([SetRequest(key="a", value=b"")]),
        store.ping(),
    ):
        with pytest.raises(StoreClosedError):
            await request
    with pytest.raises(StoreClosedError):
        store.scan("", "", "")


async def test_a_caller_that_gives_up_opening_leaves_nothing_open(network: Network) -> None:
    network.block()

    async def use() -> None:
        async with DictStore(network):
            pytest.fail("it was opened")

    using = asyncio.create_task(use())
    await network.arrived.wait()
    using.cancel()
    network.passable.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert network.calls == ["open", "close"]


async def test_closing_waits_for_what_was_accepted(network: Network) -> None:
    store = DictStore(network)
    await store.init(Metadata())
    await write(store, "a", "b")
    network.block()
    under_way = [
        asyncio.create_task(work)
        for work in (
            store.get(GetRequest(key="a")),
            store.get(GetRequest(key="a", options=GetOptions(consistency=Consistency.EVENTUAL))),
            store.keys_like(KeysLikeRequest(pattern="%")),
            write(store, "c"),
            keys(store),
            store.ping(),
        )
    ]
    await turns()
    assert {"read", "read eventual", "page", "commit", "ping"} <= set(network.calls)
    closing = asyncio.create_task(store.aclose())
    await turns()
    with pytest.raises(StoreClosedError):
        await store.get(GetRequest(key="a"))
    network.passable.set()
    await closing
    got, eventual, listing, _, scanned, _ = await asyncio.gather(*under_way)
    assert isinstance(got, GetResponse)
    assert isinstance(eventual, GetResponse)
    assert (got.data, eventual.data, scanned) == (b"a", b"a", ["a", "b"])
    assert listing is not None
    assert network.rows["", "c"][0] == b"c"
    assert network.calls[-1] == "close"


async def test_closing_waits_for_a_family_that_is_being_deleted(network: Network) -> None:
    store = DictStore(network)
    await store.init(Metadata())
    await write(store, "family||a", "family||b", "other||c")
    network.block()
    deleting = asyncio.create_task(store.delete_with_prefix("", "family"))
    await network.arrived.wait()
    closing = asyncio.create_task(store.aclose())
    await turns()
    network.passable.set()
    await closing
    assert await deleting == 2
    assert network.calls[-1] == "close"


async def test_closing_waits_for_all_pages_of_a_listing(network: Network) -> None:
    store = DictStore(network)
    await store.init(Metadata())
    network.rows |= {("", f"{number:04}"): (b"", "") for number in range(2500)}
    network.block()
    listing = asyncio.create_task(store.keys_like(KeysLikeRequest(pattern="%")))
    await network.arrived.wait()
    closing = asyncio.create_task(store.aclose())
    await turns()
    network.passable.set()
    await closing
    assert len((await listing).keys) == 2500


async def test_store_that_deletes_no_families_says_so(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(DictStore, "_delete_family")
    async with DictStore(network) as store:
        with pytest.raises(FeatureMissingError, match=r"DictStore.*'family\|\|'"):
            await store.delete_with_prefix("", "family")


@pytest.mark.parametrize("prefix", ["", "||"])
async def test_family_without_a_name_is_refused(network: Network, prefix: str) -> None:
    async with DictStore(network) as store:
        with pytest.raises(InvalidRequestError, match="prefix is required"):
            await store.delete_with_prefix("", prefix)


async def keys(store: DictStore, *, reverse: bool = False) -> list[str]:
    return [item.key async for item in store.scan("", "", "", reverse=reverse)]


async def test_a_scan_that_is_read_on_after_the_end_says_so(network: Network) -> None:
    store = DictStore(network)
    await store.init(Metadata())
    network.rows |= {("", f"{number:04}"): (b"", "") for number in range(300)}
    seen = 0
    with pytest.raises(StoreClosedError):  # noqa: PT012  the rows before the end are the point
        async for _ in store.scan("", "", ""):
            seen += 1
            await store.aclose()
    assert seen == 100


async def test_a_cancelled_reader_does_not_hold_up_the_end(network: Network) -> None:
    store = DictStore(network)
    await store.init(Metadata())
    network.block()
    reading = asyncio.create_task(keys(store))
    await network.arrived.wait()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    reading.cancel()
    await closing
    assert reading.cancelled()


async def test_reads_share_round_trips(network: Network) -> None:
    async with DictStore(network) as store:
        await write(store, "a", "b")
        answers = await store.bulk_get([GetRequest(key=key) for key in ("b", "absent", "a", "b")])
    assert [answer.data for answer in answers] == [b"b", None, b"a", b"b"]
    assert network.calls.count("read") == 1


async def test_a_key_that_no_row_can_have_is_absent_and_not_asked_for(network: Network) -> None:
    async with DictStore(network) as store:
        assert (await store.get(GetRequest(key="k" * 101))).data is None
        assert "read" not in network.calls
        assert (await store.get(GetRequest(key="k" * 100))).data is None
        assert "read" in network.calls


async def test_an_eventual_read_is_asked_for_as_one(network: Network) -> None:
    async with DictStore(network) as store:
        for consistency in Consistency:
            await store.get(GetRequest(key="a", options=GetOptions(consistency=consistency)))
    assert sorted(call for call in network.calls if "read" in call) == ["read", "read", "read eventual"]


async def test_scans_come_in_pages(network: Network) -> None:
    network.rows |= {("", f"{number:04}"): (b"", "") for number in range(1200)}
    async with DictStore(network) as store:
        expected = [f"{number:04}" for number in range(1200)]
        assert await keys(store) == expected
        assert await keys(store, reverse=True) == expected[::-1]
    assert network.calls.count("page") == 2 * 3


@pytest.mark.parametrize("size", [1, 7, 1200, None])
async def test_listings_come_in_pages(network: Network, size: int | None) -> None:
    network.rows |= {("", f"{number:04}"): (b"", "") for number in range(1200)}
    found: list[str] = []
    async with DictStore(network) as store:
        token: str | None = None
        while True:
            page = await store.keys_like(KeysLikeRequest(pattern="01%", page_size=size, continue_token=token))
            found += page.keys
            token = page.continue_token
            if token is None:
                break
    assert found == [f"{number:04}" for number in range(100, 200)]


async def test_a_token_of_another_listing_moves_a_listing_on_and_never_back(network: Network) -> None:
    async with DictStore(network) as store:
        await write(store, "a1", "a2", "b1", "b2")
        first = await store.keys_like(KeysLikeRequest(pattern="a%", page_size=1))
        other = KeysLikeRequest(pattern="b%", continue_token=first.continue_token)
        assert (await store.keys_like(other)).keys == ("b1", "b2")


async def test_a_server_that_fails_fails_requests_and_then_works_again(network: Network) -> None:
    async with DictStore(network) as store:
        network.failure = StoreUnavailableError("nobody answers")
        for request in (
            store.get(GetRequest(key="a")),
            store.multi([SetRequest(key="a", value=b"")]),
            store.ping(),
            store.keys_like(KeysLikeRequest(pattern="%")),
            keys(store),
        ):
            with pytest.raises(StoreUnavailableError):
                await request
        network.failure = None
        await write(store, "a")
        assert await keys(store) == ["a"]
        await store.ping()
