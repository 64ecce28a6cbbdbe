"""Parts of the etcd store that need no server: URLs, keys, values, and which multis can share a request."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("grpc")

from persistence import ABSENT, CheckRequest, InvalidRequestError, Operation, SetRequest, StoreCorruptError
from persistence.backends import ETCD
from persistence.decision import Transaction, prepare
from persistence.stores.etcd.capacity import Capacity
from persistence.stores.etcd.envelope import etag_of, pack, revision_of, unpack, unpack_value
from persistence.stores.etcd.keys import Keyspace
from persistence.stores.etcd.planning import Plan, plan
from persistence.stores.etcd.settings import Cluster, parse_url
from persistence.stores.etcd.store import from_url

VARIABLES = ("ETCDCTL_USER", "ETCDCTL_PASSWORD", "ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("url", "cluster"),
    [
        ("etcd://host", Cluster(("host:2379",))),
        ("etcd://host:1/", Cluster(("host:1",))),
        ("etcd://a:1,b,[::1]:3,[::1]?prefix=x", Cluster(("a:1", "b:2379", "[::1]:3", "[::1]:2379"))),
        ("etcds://me:it%27s%40@a,b:2", Cluster(("a:2379", "b:2"), True, "me", "it's@")),
        ("etcd://me@a", Cluster(("a:2379",), user="me")),
    ],
)
def test_url_names_members_and_user(url: str, cluster: Cluster) -> None:
    assert parse_url(url)[0] == cluster


@pytest.mark.parametrize(
    "url",
    [
        "etcd://",
        "etcd://a:0",
        "etcd://a:x",
        "etcd://a:1,",
        "etcd://secret@:1",
        "etcd://a/path",
        "etcd://a?lanes=0",
        "etcd://a?tls_ca=file",
        "etcds://a?tls_cert=file",
        "etcd://a?prefix=" + "x" * 257,
        "etcd://a?prefix=%00",
        "etcd://a?other=1",
    ],
)
def test_bad_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)


def test_environment_says_what_the_url_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCDCTL_USER", "her:her secret")
    monkeypatch.setenv("ETCDCTL_CACERT", "/ca")
    assert parse_url("etcd://a")[0] == Cluster(("a:2379",), user="her", password="her secret")
    assert parse_url("etcd://a")[1].tls_ca == ""
    assert parse_url("etcds://a")[1].tls_ca == "/ca"
    assert parse_url("etcds://a?tls_ca=/other")[1].tls_ca == "/other"
    monkeypatch.setenv("ETCDCTL_PASSWORD", "other secret")
    assert parse_url("etcd://me@a")[0].password == "other secret"
    assert parse_url("etcd://me:mine@a")[0].password == "mine"


def test_password_is_not_shown() -> None:
    store = from_url("etcd://me:secret@a,b:1/?prefix=p/")
    assert repr(store) == "<EtcdStore etcd://a:2379,b:1/?prefix=p/>"
    assert "secret" not in repr(parse_url("etcd://me:secret@a"))


def test_keys_stand_where_the_format_says() -> None:
    keys = Keyspace("hsm/")
    assert keys.row(("exec/1", "task/\u00e4")) == b"hsm/\0exec/1\0task/\xc3\xa4"
    assert keys.row(("", "key")) == b"hsm/\0\0key"
    assert keys.meta == b"hsm/meta"
    assert keys.new_commit().startswith(b"hsm/commit/")
    assert keys.everything() == (b"hsm/", b"hsm0")
    assert Keyspace("").everything() == (b"\0", b"\0")


def test_rows_of_different_places_never_meet() -> None:
    prefixes, partitions, keys = ("", "a", "a/", "a/b"), ("", "a", "a/b", "b"), ("a", "a/b", "b", "/b")
    rows = {
        Keyspace(prefix).row((partition, key))
        for prefix in prefixes
        for partition in partitions
        for key in keys
    }
    assert len(rows) == len(prefixes) * len(partitions) * len(keys)


@pytest.mark.parametrize(
    ("value", "expires", "content_type", "stored"),
    [
        (b"value", None, None, b"\x10value"),
        (b"", None, None, b"\x10"),
        (b"v", 1_000_000_000_000, None, b"\x11\x00\x00\x00\xe8\xd4\xa5\x10\x00v"),
        (b"v", None, "t/\u00e4", b"\x12\x00\x00\x00\x04t/\xc3\xa4v"),
        (b"v", 1, "t", b"\x13\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01tv"),
    ],
)
def test_values_stand_as_the_format_says(
    value: bytes, expires: int | None, content_type: str | None, stored: bytes
) -> None:
    assert pack(value, expires, content_type) == stored
    assert unpack_value(b"key", stored) == value
    found = unpack(b"key", stored, 255)
    assert (found.data, found.etag, found.content_type) == (value, "00000000000000ff", content_type)
    assert ("ttlExpireTime" in found.metadata) == (expires is not None)


@pytest.mark.parametrize(
    "stored", [b"", b"\x20value", b"\x14value", b"value", b"\x11\x00", b"\x12\x00\x00\x00\x02\xff\xff"]
)
def test_value_of_another_format_is_refused(stored: bytes) -> None:
    with pytest.raises(StoreCorruptError, match="'key'"):
        unpack_value(b"key", stored)


def test_etags_are_revisions() -> None:
    assert revision_of(etag_of(7)) == 7
    # What no row can have is no revision: 0 is what etcd compares absent keys with.
    assert revision_of("0" * 16) == revision_of("f" * 16) == revision_of("8" + "0" * 15) == -1


def transaction(*operations: Operation) -> Transaction:
    return prepare(operations, ETCD.limits)


def write(key: str, value: bytes = b"") -> SetRequest:
    return SetRequest(key=key, value=value)


def check(key: str) -> CheckRequest:
    return CheckRequest("", key, ABSENT)


def planned(batch: Sequence[Transaction], *, operations: int = 128, most: int = 4) -> Plan:
    capacity = Capacity()
    capacity.take_operations(operations)
    return plan(batch, range(len(batch)), capacity, prefix_bytes=4, most=most)


def test_multis_share_a_request_and_what_they_check() -> None:
    batch = [transaction(check("fence"), write(f"{number}")) for number in range(10)]
    assert planned(batch) == Plan([list(range(10))], [])


def test_multi_waits_for_one_that_checks_or_writes_what_it_writes() -> None:
    batch = [
        transaction(check("a"), write("b")),
        transaction(write("b")),
        transaction(write("a")),
        transaction(check("b")),
        transaction(check("a"), write("c")),
    ]
    assert planned(batch) == Plan([[0, 4]], [1, 2, 3])


def test_requests_keep_within_the_operations_of_the_server() -> None:
    batch = [transaction(write(f"{number}"), write(f"{number}/b")) for number in range(20)]
    # The mark, seven nested transactions, and two operations in each.
    assert [len(request) for request in planned(batch, operations=10).requests] == [7, 7, 6]
    assert planned(batch, operations=10, most=1) == Plan([list(range(7))], list(range(7, 20)))


def test_requests_keep_within_the_bytes_of_the_server() -> None:
    batch = [transaction(write(f"{number}", bytes(600_000))) for number in range(5)]
    assert planned(batch).requests == [[0, 1], [2, 3], [4]]


def test_multi_that_is_over_what_is_known_goes_alone() -> None:
    batch = [transaction(*(write(f"{number}") for number in range(20))), transaction(write("other"))]
    assert planned(batch, operations=10).requests == [[0], [1]]
