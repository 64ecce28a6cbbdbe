"""Watches: one connection a node listens to the channels of all partitions that are watched there."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from redis.exceptions import RedisError

from persistence.errors import PersistenceError
from persistence.stores.redis.layout import Layout
from persistence.stores.redis.links import Dialer, Link, LinkLostError, Reply
from persistence.stores.redis.nodes import Nodes
from persistence.stores.redis.settings import Address
from persistence.watching import Watch

__all__ = ["Listeners"]

_log = logging.getLogger(__name__)
_TICK_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0


class Listeners:
    """The watches of a store, and the connections that serve them.

    Every watch is told RESYNC once its channel is subscribed to, and again after each reconnect.
    """

    def __init__(self, nodes: Nodes, dialer: Dialer, layout: Layout, *, sharded: bool) -> None:
        self.nodes = nodes
        self.dialer = dialer
        self.layout = layout
        # In a cluster a message goes to the nodes of its slot only, if the server can do that.
        self.sharded = sharded
        self._watches: dict[str, weakref.WeakSet[Watch]] = {}
        self._listeners: dict[Address, _Listener] = {}

    def watch(self, partition: str, prefix: str) -> Watch:
        """A new watch.

        Raises:
            StoreUnavailableError: no node has the partition.
        """
        watch = Watch(prefix)
        watches = self._watches.setdefault(partition, weakref.WeakSet())
        if watches:
            # The channel is being listened to, or will be and then tells so once more.
            watch.resync()
        else:
            self.listen(partition)
        # Last: one that could not be begun must not keep the next one from beginning.
        watches.add(watch)
        return watch

    def listen(self, partition: str) -> None:
        """Subscribe to a partition's channel at the node that has it.

        Raises:
            StoreUnavailableError: there is none.
        """
        address = self.nodes.address(self.layout.hash_slot(partition))
        listener = self._listeners.get(address)
        if listener is None or listener.ended:
            listener = self._listeners[address] = _Listener(self, address)
        listener.add(partition)

    def is_watched(self, partition: str) -> bool:
        """Whether anybody still holds a watch of a partition."""
        if self._watches.get(partition):
            return True
        self._watches.pop(partition, None)
        return False

    def notify(self, partition: str, keys: Sequence[str]) -> None:
        """Tell of changed keys."""
        for watch in list(self._watches.get(partition, ())):
            for key in keys:
                watch.notify(key)

    def resync(self, partition: str) -> None:
        """Tell that changes may have been missed."""
        for watch in list(self._watches.get(partition, ())):
            watch.resync()

    async def aclose(self) -> None:
        """End the watches and the connections."""
        for listener in list(self._listeners.values()):
            await listener.aclose()
        for watches in self._watches.values():
            for watch in list(watches):
                watch.end()


class _Listener:
    """A task that keeps a connection to a node and listens."""

    def __init__(self, listeners: Listeners, address: Address) -> None:
        self._listeners = listeners
        self._address = address
        self._letter = b"S" if listeners.sharded else b""
        self._partitions: dict[bytes, str] = {}
        self._link: Link | None = None
        self._awaits_pong = False
        self._pause = _PAUSE_SECONDS
        self._telling: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._run(), name=f"listener to {listeners.dialer.where(address)}")

    @property
    def ended(self) -> bool:
        """Whether it listens no more, as nobody was interested."""
        return self._task.done()

    def add(self, partition: str) -> None:
        """Listen to a partition's channel, too."""
        channel = self._listeners.layout.channel(partition)
        self._partitions[channel] = partition
        if self._link is not None:
            task = asyncio.create_task(self._tell(self._link, b"SUBSCRIBE", channel))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def aclose(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.wait((self._task, *self._telling))

    async def _tell(self, link: Link, word: bytes, channel: bytes) -> None:
        # If it fails the connection is lost, and whoever reads from it learns so.
        with suppress(LinkLostError):
            await link.tell((self._letter + word, channel))

    async def _run(self) -> None:
        while self._partitions:
            try:
                await self._listen()
            except (LinkLostError, PersistenceError) as error:
                _log.debug("a watch lost its connection: %s", error)
            except Exception:  # noqa: BLE001  it is logged, and the watch goes on
                _log.exception("a watch failed; trying again")
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Leave to other listeners what has moved to other nodes."""
        nodes, layout = self._listeners.nodes, self._listeners.layout
        with suppress(PersistenceError):
            await nodes.refresh()
        for channel, partition in list(self._partitions.items()):
            with suppress(PersistenceError):
                if nodes.address(layout.hash_slot(partition)) != self._address:
                    del self._partitions[channel]
                    self._listeners.listen(partition)

    async def _listen(self) -> None:
        link = await self._listeners.dialer.dial(self._address)
        try:
            self._awaits_pong = False
            # What is added from here on subscribes by itself.
            self._link = link
            for channel in list(self._partitions):
                await link.tell((self._letter + b"SUBSCRIBE", channel))
            while self._partitions:
                reply = await link.next_reply(_TICK_SECONDS)
                if reply is None:
                    await self._tick(link)
                else:
                    self._hear(reply)
        finally:
            self._link = None
            await link.abort()

    async def _tick(self, link: Link) -> None:
        """Nothing was heard for a while: see whether anybody is there, and whom it is for."""
        if self._awaits_pong:
            raise LinkLostError(TimeoutError("no sign of life"), (), timed_out=True)
        for channel, partition in list(self._partitions.items()):
            if not self._listeners.is_watched(partition):
                del self._partitions[channel]
                await link.tell((self._letter + b"UNSUBSCRIBE", channel))
        if self._partitions:
            self._awaits_pong = True
            await link.tell((b"PING",))

    def _hear(self, reply: Reply) -> None:
        if isinstance(reply, RedisError):
            # The slot is elsewhere, perhaps. All of this connection's channels are then looked after again.
            raise LinkLostError(reply, (), timed_out=False)
        assert isinstance(reply, Sequence)  # so messages look
        self._awaits_pong = False
        word, *rest = reply
        if word == b"pong" or not isinstance(rest[0], bytes) or rest[0] not in self._partitions:
            return
        partition = self._partitions[rest[0]]
        if word in {b"message", b"smessage"}:
            payload = rest[1]
            assert isinstance(payload, bytes)
            self._listeners.notify(partition, payload.decode("utf-8", "replace").split("\0"))
        elif word in {b"subscribe", b"ssubscribe"}:
            self._pause = _PAUSE_SECONDS
            self._listeners.resync(partition)
        elif word == b"sunsubscribe":
            # The slot is elsewhere now.
            raise LinkLostError(ConnectionError("the slot of a channel has moved"), (), timed_out=False)
