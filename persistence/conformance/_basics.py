"""Opening and closing, values, keys and partitions."""

from __future__ import annotations

import json
from typing import Final

from persistence.conformance.case import Cases, Refused, World, expect, expect_equal
from persistence.errors import InvalidRequestError, StoreClosedError
from persistence.store import (
    DeleteRequest,
    Feature,
    GetRequest,
    HasDurability,
    HasServerVersion,
    KeysLikeStore,
    Metadata,
    OrderedStore,
    PrefixDeleteStore,
    SetRequest,
    Store,
    TransactionalStore,
    WatchableStore,
)

__all__ = ["cases"]

cases: Final = Cases()

_INTERFACES: Final[dict[Feature, type]] = {
    Feature.TRANSACTIONAL: TransactionalStore,
    Feature.SCAN: OrderedStore,
    Feature.WATCH: WatchableStore,
    Feature.KEYS_LIKE: KeysLikeStore,
    Feature.DELETE_WITH_PREFIX: PrefixDeleteStore,
}
_VALUES: Final = {
    "int": b"123",
    "bool": b"true",
    "bytes": b"\x01",
    "every byte": bytes(range(256)),
    "json text": b'{"a":"b"}',
    "text": b"hello world",
    "empty": b"",
    "struct": json.dumps({"product": {"value": 15}, "status": "ACTIVE"}).encode(),
    "unicode": "gr\u00fc\u00dfe \U0001f600".encode(),
    "protobuf": b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # an int64 of -1 in field 1
    "a mebibyte": bytes(range(256)) * 4096,
}
_KEYS: Final = (
    "app||type||id||key",
    "a/b",
    "a.b",
    "a b",
    "a%b_c",
    "a\\b",
    "a'b\"c",
    "a\nb\tc",
    "A",
    "a",
    " leading",
    "leading",
    "trailing ",
    "trailing",
    "trailing\u00a0",
    "#?&=+:;,*[]{}()<>|^~`!@$",
    "\u00e4\u00f6\u00fc",
    "\u00e4",
    "a\u0308",
    "ss",
    "\u00df",
    "\U0001f600",
    "\uffff",
    "\U0010ffff",
    "x" * 250,
    "\u20ac" * 120,
)
_ODD_NAMES: Final = (
    "{",
    "}",
    "{}",
    "}{",
    "{a}",
    "%",
    "_",
    "/",
    "//",
    "||",
    "|",
    ":",
    "\\",
    "'",
    '"',
    "`",
    "\n",
    " ",
    "\x01",
    "\x7f",
    "*",
    "?",
    "[a]",
    "$1",
    "%s",
    "\u00e4",
    "a\u0308",
    "\U0001f600",
    "\U0010ffff",
)
_BAD_TEXTS: Final = ("a\0b", "\ud800", "a\udfffb")


@cases.case()
async def opening_twice_and_closing_twice_do_nothing(world: World) -> None:
    """A second `init` or `aclose` changes nothing."""
    await world.set("key", b"value")
    store = world.open_store()
    await store.init(Metadata())
    await store.init(Metadata())
    await store.ping()
    response = await store.get(GetRequest(partition=world.partition, key="key"))
    expect_equal(response.data, b"value", "value")
    await store.aclose()
    await store.aclose()


@cases.case()
async def a_store_that_is_not_open_refuses(world: World) -> None:
    """Before `init` and after `aclose` a store says that it is not open."""
    store = world.open_store()
    await _expect_closed(store)
    await store.init(Metadata())
    await store.aclose()
    await _expect_closed(store)


async def _expect_closed(store: Store) -> None:
    with Refused(StoreClosedError):
        await store.get(GetRequest(key="key"))
    with Refused(StoreClosedError):
        await store.set(SetRequest(key="key", value=b""))
    with Refused(StoreClosedError):
        await store.ping()


@cases.case()
async def ping_answers(world: World) -> None:
    """A store that is open answers."""
    await world.store.ping()


@cases.case()
async def declared_features_have_their_methods(world: World) -> None:
    """A store that declares a feature has the methods of it."""
    for feature, interface in _INTERFACES.items():
        if feature in world.store.features:
            expect(isinstance(world.store, interface), f"{feature} is declared, but methods are missing")


@cases.case()
async def values_come_back_as_they_are(world: World) -> None:
    """Bytes are bytes: nothing is decoded, normalised or cut off."""
    most = world.store.limits.value_bytes
    values = {name: value for name, value in _VALUES.items() if len(value) <= most}
    for name, value in values.items():
        await world.set(name, value)
    await world.expect_values(values)


@cases.case()
async def a_value_is_replaced(world: World) -> None:
    """The last write counts, also where it is shorter or empty."""
    for value in (b"long value", b"short", b"", b"again"):
        await world.set("key", value)
        expect_equal(await world.value("key"), value, "value")


@cases.case()
async def an_absent_key_is_an_empty_response(world: World) -> None:
    """Reading what is not there is no error."""
    response = await world.get("absent")
    expect_equal((response.data, response.etag, len(response.metadata)), (None, None, 0), "response")


@cases.case()
async def a_deleted_key_is_absent(world: World) -> None:
    """Deleting works, and deleting what was never there is no error."""
    await world.set("key", b"to be deleted")
    await world.delete("key")
    await world.delete("key")
    await world.delete("never written")
    response = await world.get("key")
    expect_equal((response.data, response.etag), (None, None), "response")


@cases.case()
async def keys_of_any_text_stay_apart(world: World) -> None:
    """No character is special, and no two keys are the same but equal ones."""
    room = world.store.limits.key_bytes - len(world.partition.encode())
    keys = [key for key in _KEYS if len(key.encode()) <= room]
    for number, key in enumerate(keys):
        await world.set(key, str(number).encode())
    await world.expect_values({key: str(number).encode() for number, key in enumerate(keys)})
    for key in keys:
        await world.delete(key)
    await world.expect_values(dict.fromkeys(keys))


@cases.case()
async def bad_keys_are_refused(world: World) -> None:
    """An empty key, NUL and lone surrogates are refused, whatever is asked for."""
    for key in ("", *_BAD_TEXTS):
        with Refused(InvalidRequestError):
            await world.get(key)
        with Refused(InvalidRequestError):
            await world.set(key)
        with Refused(InvalidRequestError):
            await world.delete(key)
    for partition in _BAD_TEXTS:
        with Refused(InvalidRequestError):
            await world.store.get(GetRequest(partition=partition, key="key"))
        with Refused(InvalidRequestError):
            await world.store.set(SetRequest(partition=partition, key="key", value=b""))
        with Refused(InvalidRequestError):
            await world.store.delete(DeleteRequest(partition=partition, key="key"))


@cases.case()
async def partitions_are_apart(world: World) -> None:
    """The same key in two partitions is two keys, however the parts could be joined."""
    places = [(world.partition, "a/b"), (f"{world.partition}/a", "b"), (f"{world.partition}/a/b", "b")]
    for number, (partition, key) in enumerate(places):
        await world.store.set(SetRequest(partition=partition, key=key, value=str(number).encode()))
    await world.store.delete(DeleteRequest(partition=places[1][0], key=places[1][1]))
    found = [(await world.store.get(GetRequest(partition=p, key=k))).data for p, k in places]
    expect_equal(found, [b"0", None, b"2"], "values")


@cases.case()
async def partitions_of_any_name_stay_apart(world: World) -> None:
    """No character of a partition's name is special, wherever it stands, and none of 200 bytes is cut off."""
    odd = [f"{text}{world.partition}" for text in _ODD_NAMES]
    odd += [f"{world.partition}{text}" for text in ("", *_ODD_NAMES)]
    length = min(200, world.store.limits.key_bytes - len("a/b"))
    odd += [f"{world.partition}{'/' * count}".ljust(length, "x") for count in (1, 2)]
    places = {(partition, key): f"{partition} {key}".encode() for partition in odd for key in ("a", "a/b")}
    await world.store.bulk_set(
        [SetRequest(partition=partition, key=key, value=value) for (partition, key), value in places.items()]
    )
    gone = (odd[0], "a")
    await world.store.delete(DeleteRequest(partition=gone[0], key=gone[1]))
    for (partition, key), value in places.items():
        found = (await world.store.get(GetRequest(partition=partition, key=key))).data
        expect_equal(found, None if (partition, key) == gone else value, f"value of {key!r} in {partition!r}")
    if Feature.SCAN in world.store.features:
        for partition in odd[1:]:
            keys = [item.key async for item in world.ordered.scan(partition, "", "")]
            expect_equal(keys, ["a", "a/b"], f"keys of {partition!r}")


@cases.case()
async def the_default_partition_is_one_like_others(world: World) -> None:
    """A request without a partition works in the partition ""."""
    key = world.partition
    await world.store.set(SetRequest(key=key, value=b"default"))
    expect_equal((await world.store.get(GetRequest(partition="", key=key))).data, b"default", "value")
    await world.store.delete(DeleteRequest(key=key))
    expect_equal((await world.store.get(GetRequest(key=key))).data, None, "value")


@cases.case()
async def a_content_type_comes_back(world: World) -> None:
    """`contentType` is kept with the value, and goes with it."""
    await world.set("key", b"{}", metadata={"contentType": "application/json"})
    expect_equal((await world.get("key")).content_type, "application/json", "content type")
    await world.set("key", b"")
    expect_equal((await world.get("key")).content_type, None, "content type")


@cases.case()
async def another_store_sees_what_was_written(world: World) -> None:
    """What a write has acknowledged is there for every other store of the database."""
    async with world.open_store() as other:
        for value in (b"1", b"2"):
            await world.set("key", value)
            response = await other.get(GetRequest(partition=world.partition, key="key"))
            expect_equal(response.data, value, "value")


@cases.case()
async def a_store_says_what_it_can_lose(world: World) -> None:
    """One sentence, where it says anything; and what it is connected to."""
    if isinstance(world.store, HasDurability):
        expect(world.store.durability.strip(), "the durability is empty")
    if isinstance(world.store, HasServerVersion):
        expect(world.store.server_version.strip(), "the version is empty")
