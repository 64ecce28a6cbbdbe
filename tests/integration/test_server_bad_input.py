"""What goes wrong on the way to a server ends in an error that names it, in time, and without the password."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import pytest

from persistence import (
    ABSENT,
    CheckRequest,
    CommitOutcomeUnknownError,
    EngineStore,
    ETagInvalidError,
    GetRequest,
    InvalidRequestError,
    KeysLikeRequest,
    KeysLikeStore,
    Operation,
    PersistenceError,
    SetRequest,
    StoreUnavailableError,
    TransactionTooLargeError,
    connect,
    require,
)
from tests.conftest import NewServer
from tests.support.servers import KINDS, Server

pytestmark = [pytest.mark.server, pytest.mark.parametrize("kind", KINDS)]

# Far beyond every time-out of the tests: who is not back by then hangs.
_HANGS_SECONDS: Final = 60
_PASSWORD: Final = "it's/a@secret:"
_IMPATIENT: Final = {"connect_timeout": "0.25", "request_timeout": "0.25"}

ServerOf = Callable[[str], Server]


def with_options(url: str, **options: str) -> str:
    """The URL with options added."""
    more = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{more}"


def at(url: str, address: str) -> str:
    """The URL with another user, password, host and port."""
    return urlsplit(url)._replace(netloc=address).geturl()


async def open_and_close(url: str) -> None:
    async with asyncio.timeout(_HANGS_SECONDS), connect(url):
        pass


def everything_said(error: BaseException | None) -> str:
    """The messages and representations of an error, of what caused it, and of what they say when printed."""
    said: list[str] = []
    while error is not None:
        said += [str(error), repr(error), *traceback.format_exception_only(error)]
        error = error.__cause__
    return "\n".join(said)


@pytest.mark.parametrize("port", ["port", "99999", "-1"])
async def test_bad_port_is_refused(kind: str, port: str, server_of: ServerOf) -> None:
    url = at(server_of(kind).url, f"me:secret@127.0.0.1:{port}")
    with pytest.raises(InvalidRequestError) as refused:
        await open_and_close(url)
    assert "secret" not in everything_said(refused.value)


@pytest.mark.parametrize(
    "address", ["me:se/cret@{}", "me:1?secret@{}", "me:?secret@{}", "me:x@secret@{}", "me:[secret]@{}"]
)
async def test_password_that_is_not_escaped_is_not_told(kind: str, address: str, server_of: ServerOf) -> None:
    url = server_of(kind).url
    with pytest.raises((InvalidRequestError, StoreUnavailableError)) as refused:
        await open_and_close(with_options(at(url, address.format("127.0.0.1:1")), **_IMPATIENT))
    said = everything_said(refused.value)
    assert "secret" not in said
    assert "cret@" not in said
    assert "'se'" not in said


async def test_url_without_anything_is_refused_or_meets_nobody(kind: str, server_of: ServerOf) -> None:
    # Some databases have a usual place; a server of somebody else's there may even let us in.
    scheme = urlsplit(server_of(kind).url).scheme
    with suppress(PersistenceError):
        await open_and_close(f"{scheme}://?create=false&connect_timeout=1&request_timeout=1")


async def test_unknown_option_is_named(kind: str, server_of: ServerOf) -> None:
    with pytest.raises(InvalidRequestError, match="'lains'"):
        await open_and_close(with_options(server_of(kind).url, lains="4"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("connect_timeout", "soon"), ("request_timeout", "-1"), ("request_timeout", ""), ("create", "maybe")],
)
async def test_bad_option_is_named(kind: str, name: str, text: str, server_of: ServerOf) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        await open_and_close(with_options(server_of(kind).url, **{name: text}))


async def test_option_given_twice_is_refused(kind: str, server_of: ServerOf) -> None:
    url = with_options(server_of(kind).url, request_timeout="1")
    with pytest.raises(InvalidRequestError, match="request_timeout"):
        await open_and_close(with_options(url, request_timeout="2"))


@contextmanager
def port_that_refuses() -> Iterator[int]:
    """A port that is taken, but on which nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@asynccontextmanager
async def port_that_says_nothing() -> AsyncIterator[int]:
    """A port on which somebody accepts connections, reads what comes, and never answers."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while await reader.read(1000):
                pass

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextmanager
def port_that_never_accepts() -> Iterator[int]:
    """A port whose queue of connections is not served."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        yield listening.getsockname()[1]


async def expect_unavailable(url: str, port: int) -> None:
    with pytest.raises(StoreUnavailableError, match=str(port)) as refused:
        await open_and_close(with_options(at(url, f"me:secret@127.0.0.1:{port}"), **_IMPATIENT))
    assert "secret" not in everything_said(refused.value)


async def test_host_that_refuses_is_named(kind: str, server_of: ServerOf) -> None:
    with port_that_refuses() as port:
        await expect_unavailable(server_of(kind).url, port)


async def test_host_that_says_nothing_is_named(kind: str, server_of: ServerOf) -> None:
    async with port_that_says_nothing() as port:
        await expect_unavailable(server_of(kind).url, port)


async def test_host_that_never_accepts_is_named(kind: str, server_of: ServerOf) -> None:
    with port_that_never_accepts() as port:
        await expect_unavailable(server_of(kind).url, port)


async def test_host_that_does_not_exist_is_named(kind: str, server_of: ServerOf) -> None:
    with pytest.raises(StoreUnavailableError, match=r"nowhere\.invalid"):
        await open_and_close(with_options(at(server_of(kind).url, "nowhere.invalid:1234"), **_IMPATIENT))


async def test_opening_can_be_given_up(kind: str, server_of: ServerOf) -> None:
    async with port_that_says_nothing() as port:
        url = with_options(at(server_of(kind).url, f"127.0.0.1:{port}"), **_IMPATIENT)
        opening = asyncio.create_task(open_and_close(url))
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


async def test_wrong_password_is_refused_and_no_password_is_told(kind: str, new_server: NewServer) -> None:
    server = new_server(kind, password=_PASSWORD)
    store = connect(server.url)
    async with asyncio.timeout(_HANGS_SECONDS), store:
        await store.ping()
        assert "secret" not in repr(store)
    credentials, _, address = urlsplit(server.url).netloc.rpartition("@")
    user = credentials.partition(":")[0]
    for credentials in (f"{user}:wrong-word@", f"{user}@" if user else ""):
        with pytest.raises(StoreUnavailableError) as refused:
            await open_and_close(with_options(at(server.url, f"{credentials}{address}"), **_IMPATIENT))
        said = everything_said(refused.value)
        assert "secret" not in said
        assert "wrong-word" not in said


async def test_requests_over_the_limits_leave_nothing_behind(kind: str, server_of: ServerOf) -> None:
    async with require(connect(server_of(kind).fresh_url()), EngineStore) as store:
        limits = store.limits
        value = bytes(limits.value_bytes)
        too_many_bytes = limits.transaction_bytes // limits.value_bytes + 1
        requests: list[list[Operation]] = [
            [SetRequest(key="key", value=value + b"x")],
            [SetRequest(key="k" * (limits.key_bytes + 1), value=b"")],
            [SetRequest(key="key", partition="p" * limits.key_bytes, value=b"")],
            [SetRequest(key=str(number), value=b"") for number in range(limits.operations + 1)],
            [SetRequest(key=str(number), value=value) for number in range(too_many_bytes)],
        ]
        for operations in requests:
            with pytest.raises(TransactionTooLargeError):
                await store.multi(
                    [SetRequest(key="good", value=b"", partition=operations[0].partition), *operations]
                )
        for etag in ("not an etag", "0" * 15, "F" * 16, "0" * 17):
            with pytest.raises(ETagInvalidError):
                await store.multi([SetRequest(key="good", value=b""), CheckRequest("", "key", etag)])
        assert [item.key async for item in store.scan("", "", "")] == []
        await store.multi([CheckRequest("", "good", ABSENT), SetRequest(key="good", value=b"")])


async def test_server_that_stops_answering_is_told_in_time_and_forgiven(
    kind: str, server_of: ServerOf, new_server: NewServer
) -> None:
    server = server_of(kind) if server_of(kind).controllable else new_server(kind)
    url = with_options(server.fresh_url(), **_IMPATIENT)
    async with require(connect(url), EngineStore) as store:
        await store.set(SetRequest(key="before", value=b"1"))
        server.pause()
        try:
            outcomes = await while_nobody_answers(store, url)
        finally:
            server.resume()
        async with asyncio.timeout(_HANGS_SECONDS):
            await until_it_works(store)
            found = {item.key async for item in store.scan("", "", "")}
        for key, outcome in outcomes.items():
            rows = {row for row in found if row.startswith(f"{key}/")}
            assert rows in ({f"{key}/a", f"{key}/b"}, set()), f"{key} is half done"
            if isinstance(outcome, StoreUnavailableError):
                assert not rows, f"{key} is there, and {outcome!r} said that it is not"
        assert "before" in found


async def while_nobody_answers(store: EngineStore, url: str) -> dict[str, PersistenceError]:
    """Ask for everything; what became of the writes."""

    async def error_of(request: Awaitable[object]) -> PersistenceError:
        with pytest.raises((StoreUnavailableError, CommitOutcomeUnknownError)) as failed:
            await request
        assert isinstance(failed.value, PersistenceError)
        return failed.value

    def write(key: str) -> Awaitable[str]:
        return store.multi([SetRequest(key=f"{key}/{part}", value=b"") for part in "ab"])

    async def scan() -> None:
        async for _ in store.scan("", "", ""):
            pass

    reads: list[Awaitable[object]] = [
        store.get(GetRequest(key="before")),
        scan(),
        store.ping(),
        require(store, KeysLikeStore).keys_like(KeysLikeRequest(pattern="%")),
        open_and_close(url),
    ]
    keys = [f"{number}" for number in range(5)]
    async with asyncio.timeout(_HANGS_SECONDS):
        first = await error_of(write("first"))
        errors = await asyncio.gather(
            *(error_of(read) for read in reads), *(error_of(write(key)) for key in keys)
        )
    for error in errors[: len(reads)]:
        assert isinstance(error, StoreUnavailableError)
    return {"first": first, **dict(zip(keys, errors[len(reads) :], strict=True))}


async def until_it_works(store: EngineStore) -> None:
    """Write until it succeeds a few times."""
    successes = 0
    while successes < 5:
        try:
            await store.set(SetRequest(key="after", value=b"2"))
            assert (await store.get(GetRequest(key="after"))).data == b"2"
        except (StoreUnavailableError, CommitOutcomeUnknownError):
            await asyncio.sleep(0.05)
        else:
            successes += 1
