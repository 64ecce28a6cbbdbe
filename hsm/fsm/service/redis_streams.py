"""Streams of Redis and Valkey: events from a stream, outcomes to a stream. Needs the extra `redis`."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol, TypeAlias, cast

import attrs

from hsm.engine.clock import from_nanos
from hsm.fsm.service.errors import QueueError
from hsm.fsm.service.intake import Delivery
from hsm.fsm.service.messages import encode_response
from persistence.proto.statemachine_pb2 import EventResponse

try:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError, ResponseError
except ImportError as _error:
    raise ImportError(
        "Redis streams need redis: pip install 'hsm-toolkit[redis]'", name=_error.name
    ) from _error

__all__ = ["BODY", "RedisStream", "StreamOptions", "StreamPublisher", "redis_stream", "stream_publisher"]

BODY: Final = "body"
"""The field of an entry that holds the message: Base64 of a protobuf message."""

_ANSWER_SECONDS: Final = 10

_RAW_ANSWERS: Final = ("XREADGROUP", "XAUTOCLAIM", "XCLAIM", "XPENDING")
_PAGE: Final = 1000

_Entry: TypeAlias = "tuple[bytes, list[bytes] | None]"
"""Id and fields, names and values by turns; no fields if the entry was deleted while it was pending."""
_Pending: TypeAlias = "tuple[bytes, bytes, int, int]"
"""Id, consumer, milliseconds since it was last touched, deliveries."""


@attrs.frozen
class StreamOptions:
    """How a stream of events is read.

    Attributes:
        group: the consumer group, made if there is none, from the stream's first entry on.
        consumer: our name in it; None for a new one in each process.
        dead_letters: the stream for entries that can never be processed, with the field `reason`; None lets
            them stay pending in the group.
        wait: how long a read waits for entries; an orderly end waits for the last read.
        idle: after which a consumer that has neither acknowledged an entry nor held on to it counts as dead.
        delete: whether acknowledged entries are deleted, too. Not if other groups read the stream.
    """

    group: str = "hsm"
    consumer: str | None = None
    dead_letters: str | None = None
    wait: timedelta = timedelta(seconds=1)
    idle: timedelta = timedelta(seconds=30)
    delete: bool = False


@asynccontextmanager
async def redis_stream(
    url: str, stream: str, options: StreamOptions | None = None
) -> AsyncGenerator[RedisStream, None]:
    """A stream of events on the server `url`, read as a member of a consumer group, until the block ends.

    Raises:
        QueueError: the server does not answer, or the key holds something else.
    """
    chosen = options or StreamOptions()
    async with _client(url, chosen.wait) as client:
        queue = RedisStream(client, stream, chosen)
        await queue.join()
        try:
            yield queue
        finally:
            await queue.leave()


@asynccontextmanager
async def stream_publisher(
    url: str, stream: str, *, most_entries: int | None = None
) -> AsyncGenerator[StreamPublisher, None]:
    """A stream of outcomes on the server `url`, until the block ends.

    Args:
        url: of the server.
        stream: its key.
        most_entries: about so many are kept; None for all.

    Raises:
        QueueError: the server does not answer.
    """
    async with _client(url, timedelta()) as client:
        with _translated(stream):
            await cast("_Commands", client).execute_command("PING")
        yield StreamPublisher(client, stream, most_entries)


class _Commands(Protocol):
    """The part of the driver that has no types of its own."""

    def execute_command(self, *command: str | bytes | int) -> Awaitable[object]: ...


class _Transaction(Protocol):
    """Likewise."""

    def execute_command(self, *command: str | bytes | int) -> object: ...


class RedisStream:
    """A `MessageQueue` on a stream; see `redis_stream`.

    One consumer sees the entries in the order of the stream. Several in a group share them out as they come,
    so that two events for one machine may overtake each other.
    """

    def __init__(self, client: Redis, stream: str, options: StreamOptions) -> None:
        self._client = client
        self._commands = cast("_Commands", client)
        self._stream = stream
        self._options = options
        self._consumer = options.consumer or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        # Entries of ours from before a restart come first, if the name is the same.
        self._own_after: str | None = "0" if options.consumer else None
        self._claim_from = "0-0"
        self._claim_at = 0.0
        self._idle_ms = max(1, round(options.idle.total_seconds() * 1000))

    @property
    def name(self) -> str:
        """See `MessageQueue`."""
        return self._stream

    @property
    def hold(self) -> timedelta:
        """See `MessageQueue`."""
        return self._options.idle

    async def join(self) -> None:
        """Make the group if there is none.

        Raises:
            QueueError: the server does not answer, or the key holds no stream.
        """
        with _translated(self._stream):
            try:
                await self._call("XGROUP", "CREATE", self._stream, self._options.group, "0", "MKSTREAM")
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def leave(self) -> None:
        """Let others have what is not acknowledged at once, and leave the group if nothing is left."""
        with _translated(self._stream):
            # Entries of which the answer has not reached us, too.
            group = (self._stream, self._options.group)
            pending = _rows(await self._call("XPENDING", *group, "-", "+", _PAGE, self._consumer))
            await self._claim([_text(row[0]) for row in pending], "IDLE", self._idle_ms)
            if not pending and self._options.consumer is None:
                # A consumer that is deleted takes the entries that are pending for it along.
                await self._call("XGROUP", "DELCONSUMER", *group, self._consumer)

    async def receive(self, most: int) -> Sequence[Delivery]:
        """See `MessageQueue`."""
        with _translated(self._stream):
            try:
                return await self._receive(most)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
        # Somebody has deleted the stream; another one may begin.
        await self.join()
        return []

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `MessageQueue`."""
        with _translated(self._stream):
            await self._claim([each.receipt for each in deliveries], "IDLE", 0)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """See `MessageQueue`."""
        with _translated(self._stream):
            await self._claim([each.receipt for each in deliveries], "IDLE", self._idle_ms)

    async def acknowledge(self, delivery: Delivery) -> None:
        """See `MessageQueue`."""
        with _translated(self._stream):
            await self._together(*self._settling(delivery))

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """See `MessageQueue`. Both streams change at once, so on a cluster they have to share a hash tag."""
        if self._options.dead_letters is None:
            return False
        fields = {
            BODY: delivery.body or "",
            "reason": reason,
            "stream": self._stream,
            "message_id": delivery.receipt,
        }
        flat = [part for pair in fields.items() for part in pair]
        with _translated(self._stream):
            await self._together(["XADD", self._options.dead_letters, "*", *flat], *self._settling(delivery))
        return True

    def _settling(self, delivery: Delivery) -> list[list[str]]:
        commands = [["XACK", self._stream, self._options.group, delivery.receipt]]
        if self._options.delete:
            commands.append(["XDEL", self._stream, delivery.receipt])
        return commands

    async def _together(self, *commands: Sequence[str]) -> None:
        async with self._client.pipeline(transaction=True) as pipeline:
            queue = cast("_Transaction", pipeline)
            for command in commands:
                queue.execute_command(*command)
            await pipeline.execute()

    async def _receive(self, most: int) -> Sequence[Delivery]:
        if self._own_after is not None:
            entries = await self._read(most, self._own_after)
            if entries:
                self._own_after = _text(entries[-1][0])
                return await self._again(entries)
            self._own_after = None
        now = asyncio.get_running_loop().time()
        if now >= self._claim_at:
            entries = await self._claim_idle(most, now)
            if entries:
                return await self._again(entries)
        return [_delivery(self._stream, entry, 1) for entry in await self._read(most, ">")]

    async def _read(self, most: int, after: str) -> list[_Entry]:
        milliseconds = max(1, round(self._options.wait.total_seconds() * 1000))
        answer = await self._call(
            "XREADGROUP", "GROUP", self._options.group, self._consumer, "COUNT", most, "BLOCK", milliseconds,
            "STREAMS", self._stream, after,
        )  # fmt: skip
        streams = cast("list[tuple[bytes, list[_Entry]]]", answer or [])
        return [entry for _, entries in streams for entry in entries]

    async def _claim_idle(self, most: int, now: float) -> list[_Entry]:
        """Entries of dead consumers; all of them are looked at from time to time."""
        answer = await self._call(
            "XAUTOCLAIM", self._stream, self._options.group, self._consumer, self._idle_ms, self._claim_from,
            "COUNT", most,
        )  # fmt: skip
        after, entries, *_ = cast("tuple[bytes, list[_Entry | None]]", answer)
        self._claim_from = _text(after)
        if self._claim_from == "0-0":
            self._claim_at = now + self._options.idle.total_seconds() / 2
        # Redis 6 has nothing in place of entries that were deleted.
        return [entry for entry in entries if entry is not None]

    async def _claim(self, ids: Sequence[str], *how: str | int) -> None:
        """Set how long ago entries were last touched; they have to be pending still."""
        if ids:
            group = (self._stream, self._options.group, self._consumer)
            await self._call("XCLAIM", *group, 0, *ids, *how, "JUSTID")

    async def _again(self, entries: Sequence[_Entry]) -> list[Delivery]:
        """Deliveries of entries that have been delivered before, with their counts."""
        first, last = entries[0][0], entries[-1][0]
        rows = _rows(
            await self._call(
                "XPENDING", self._stream, self._options.group, first, last, 10 * len(entries), self._consumer
            )
        )
        counts = {row[0]: row[3] for row in rows}
        return [_delivery(self._stream, entry, counts.get(entry[0], 1)) for entry in entries]

    async def _call(self, *command: str | bytes | int) -> object:
        return await self._commands.execute_command(*command)


class StreamPublisher:
    """An `OutcomePublisher` on a stream; see `stream_publisher`."""

    def __init__(self, client: Redis, stream: str, most_entries: int | None) -> None:
        self._client = client
        self._stream = stream
        self._most_entries = most_entries

    async def publish(self, response: EventResponse) -> None:
        """See `OutcomePublisher`."""
        with _translated(self._stream):
            await self._client.xadd(
                self._stream, {BODY: encode_response(response)}, maxlen=self._most_entries, approximate=True
            )


def _delivery(stream: str, entry: _Entry, count: int) -> Delivery:
    id_, flat = _text(entry[0]), entry[1] or []
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    body = fields.get(BODY.encode())
    milliseconds = int(id_.partition("-")[0])
    return Delivery(
        receipt=id_,
        # Ids of entries are the same in any stream; ids of events are unique within a configuration.
        message_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"redis-stream:{stream}#{id_}")),
        body=None if body is None else body.decode(errors="replace"),
        sent=from_nanos(milliseconds * 1_000_000),
        count=count,
    )


def _rows(answer: object) -> list[_Pending]:
    return cast("list[_Pending]", answer or [])


def _text(raw: bytes) -> str:
    return raw.decode()


@asynccontextmanager
async def _client(url: str, wait: timedelta) -> AsyncGenerator[Redis, None]:
    with _translated("the address of the stream"):
        connect = cast("Callable[..., Redis]", Redis.from_url)  # pyright: ignore[reportUnknownMemberType]  # likewise
        client = connect(
            url,
            protocol=2,
            # Longer than the longest read.
            socket_timeout=wait.total_seconds() + _ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
        )
    for command in _RAW_ANSWERS:
        # The driver's own shapes differ from version to version.
        client.set_response_callback(command, cast("Any", _as_it_is))
    try:
        yield client
    finally:
        await client.aclose()


def _as_it_is(response: object, **_: object) -> object:
    return response


@contextmanager
def _translated(stream: str) -> Generator[None, None, None]:
    try:
        yield
    except (RedisError, OSError, ValueError) as error:
        raise QueueError(f"{stream}: {error}") from error
