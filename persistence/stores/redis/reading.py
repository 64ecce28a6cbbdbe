"""Reading, over connections that are shared; a read that loses its connection is tried once more."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from redis.exceptions import RedisError

from persistence.decision import Slot
from persistence.errors import (
    CommitOutcomeUnknownError,
    PersistenceError,
    StoreClosedError,
    StoreCorruptError,
    StoreUnavailableError,
)
from persistence.gathering import Rows
from persistence.paging import Page, Window
from persistence.store import GetResponse, Item
from persistence.stores.redis.dispatch import Outcome, Request, carry, dispatch
from persistence.stores.redis.failures import is_of_another_kind, translate
from persistence.stores.redis.layout import Layout, MalformedRowError, read_row
from persistence.stores.redis.links import Command, Dialer, Link, LinkLostError, Reply
from persistence.stores.redis.nodes import Nodes, OneNode
from persistence.stores.redis.scripts import DELETE, PAGE, TIDY
from persistence.stores.redis.settings import Address

__all__ = ["Reader"]

_PAGE_BYTES: Final = 1024 * 1024
_CHUNK_KEYS: Final = 500
_ATTEMPTS: Final = 2


class Reader:
    """Reads rows and pages, and removes what they find to be stale."""

    def __init__(self, nodes: Nodes, dialer: Dialer, layout: Layout, connections: int) -> None:
        self._nodes = nodes
        self._dialer = dialer
        self._layout = layout
        self._idle: dict[Address, list[Link]] = {}
        self._turns = defaultdict[Address, asyncio.Semaphore](lambda: asyncio.Semaphore(connections))
        self._closed = False

    async def rows(self, slots: Sequence[Slot]) -> Rows:
        """Read rows; absent and expired ones are left out, an error stands in the place of its row."""
        if len(slots) == 1:
            return await self._one_by_one(slots)
        groups: dict[str, list[Slot]] = {}
        for slot in slots:
            # One command reads keys of any partitions, but in a cluster of one only.
            groups.setdefault("" if isinstance(self._nodes, OneNode) else slot[0], []).append(slot)
        requests: list[Request] = []
        for group in groups.values():
            keys = [self._layout.row(*slot) for slot in group]
            # To MGET a key of another kind is an absent one; to EXISTS it is not.
            requests += [
                Request(self._layout.hash_slot(group[0][0]), (word, *keys)) for word in (b"MGET", b"EXISTS")
            ]
        outcomes = await self._carry_out(requests)
        found: dict[Slot, GetResponse | PersistenceError] = {}
        doubtful: list[Slot] = []
        for group, request, rows, present in zip(
            groups.values(), requests[::2], outcomes[::2], outcomes[1::2], strict=True
        ):
            if not isinstance(rows, list):
                found |= {slot: self._found(slot, request, rows) for slot in group}
                continue
            absent = [slot for slot, row in zip(group, rows, strict=True) if row is None]
            found |= {
                slot: self._found(slot, request, row)
                for slot, row in zip(group, rows, strict=True)
                if row is not None
            }
            if present != len(group) - len(absent):
                doubtful += absent
        return found | await self._one_by_one(doubtful) if doubtful else found

    async def _one_by_one(self, slots: Sequence[Slot]) -> dict[Slot, GetResponse | PersistenceError]:
        layout = self._layout
        requests = [Request(layout.hash_slot(slot[0]), (b"GET", layout.row(*slot))) for slot in slots]
        return {
            slot: self._found(slot, request, outcome)
            for slot, request, outcome in zip(slots, requests, await self._carry_out(requests), strict=True)
            if outcome is not None
        }

    def _found(self, slot: Slot, request: Request, outcome: Outcome) -> GetResponse | PersistenceError:
        """What an answer says of a row."""
        if isinstance(outcome, bytes):
            try:
                return self._row(slot, outcome)
            except StoreCorruptError as corrupt:
                return corrupt
        if isinstance(outcome, PersistenceError):
            return outcome
        assert isinstance(outcome, RedisError)  # rows are answered with bytes
        foreign = is_of_another_kind(outcome)
        error = self._corrupt(slot) if foreign else translate(outcome, self._where(request))
        error.__cause__ = outcome
        return error

    async def page(self, window: Window, rows: int) -> Page:
        """Read at most so many rows from the beginning of a window, fewer if their values are large."""
        entries, last = await self._page(window, rows, b"values")
        items: list[Item] = []
        for at in range(0, len(entries), 2):
            key = entries[at].decode()
            row = self._row((window.partition, key), entries[at + 1])
            assert row.data is not None  # it is there
            assert row.etag is not None
            items.append(Item(key, row.data, row.etag))
        return Page(items, last)

    async def keys(self, window: Window, rows: int) -> tuple[list[str], bool]:
        """The keys of living rows from the beginning of a window, and whether they were all."""
        entries, last = await self._page(window, rows, b"keys")
        return [entry.decode() for entry in entries], last

    async def _page(self, window: Window, rows: int, kind: bytes) -> tuple[list[bytes], bool]:
        """A page that has something unless it is the last one."""
        while True:
            found, stale, position, last = await self._look(window, rows, kind)
            if stale:
                await self._tidy(window.partition, stale)
            if found or last:
                return found, last
            window = window.beyond(position)

    async def _look(
        self, window: Window, rows: int, kind: bytes
    ) -> tuple[list[bytes], list[bytes], str, bool]:
        low = (b"(" if window.after else b"[") + window.start.encode() if window.start else b"-"
        high = b"(" + window.end.encode() if window.end else b"+"
        bounds = (high, low, b"REV") if window.reverse else (low, high, b"")
        command = PAGE.call(
            [self._layout.index(window.partition)], [*bounds, b"%d" % rows, b"%d" % _PAGE_BYTES, kind]
        )
        # Not to the node that a slot is just moving to: it has the index, but not all rows.
        request = Request(self._layout.hash_slot(window.partition), command, follow=False)
        (reply,) = await self.ask([request])
        assert isinstance(reply, Sequence)  # see page.lua
        last, position, stale, found = reply
        assert isinstance(position, bytes)
        return _names(found), _names(stale), position.decode(), last == 1

    async def sweep(self, window: Window, rows: int) -> Window | None:
        """Remove stale members from a part of an index; the window that is left, or None at the end."""
        _, stale, position, last = await self._look(window, rows, b"keys")
        if stale:
            await self._tidy(window.partition, stale)
        return None if last or not position else window.beyond(position)

    async def _tidy(self, partition: str, stale: Sequence[bytes]) -> None:
        """Remove members of the index whose rows have expired, and were not written again since."""
        prefix, slot = self._layout.row_prefix(partition), self._layout.hash_slot(partition)
        index = self._layout.index(partition)
        for start in range(0, len(stale), _CHUNK_KEYS):
            keys = [prefix + name for name in stale[start : start + _CHUNK_KEYS]]
            try:
                await self.ask([Request(slot, TIDY.call([index, *keys]))])
            except StoreUnavailableError:
                return  # the next reader does it

    async def delete(self, partition: str, keys: Sequence[str], publish: bytes) -> int:
        """Delete rows; the number of those that were there."""
        prefix, slot = self._layout.row_prefix(partition), self._layout.hash_slot(partition)
        index, channel = self._layout.index(partition), self._layout.channel(partition)
        deleted = 0
        for start in range(0, len(keys), _CHUNK_KEYS):
            rows = [prefix + key.encode() for key in keys[start : start + _CHUNK_KEYS]]
            request = Request(slot, DELETE.call([index, *rows], [publish, channel]))
            (count,) = await self.ask([request], attempts=1)
            assert isinstance(count, int)  # see delete.lua
            deleted += count
        return deleted

    async def ask(self, requests: Sequence[Request], *, attempts: int = _ATTEMPTS) -> list[Reply]:
        """Carry commands out, and answer with their replies.

        Args:
            requests: the commands.
            attempts: 1 for what must not be sent twice.

        Raises:
            StoreUnavailableError: the server does not answer, or refuses.
            StoreCorruptError: what it has is not ours.
            CommitOutcomeUnknownError: the connection broke, and it must not be sent twice.
        """
        replies: list[Reply] = []
        for request, outcome in zip(requests, await self._carry_out(requests, attempts), strict=True):
            if isinstance(outcome, PersistenceError):
                raise outcome
            if isinstance(outcome, RedisError):
                raise translate(outcome, self._where(request)) from outcome
            replies.append(outcome)
        return replies

    async def _carry_out(self, requests: Sequence[Request], attempts: int = _ATTEMPTS) -> list[Outcome]:
        async def send(address: Address, some: Sequence[Request]) -> Sequence[Outcome]:
            return await self._send(address, some, attempts)

        return await dispatch(self._nodes, requests, send, self._dialer.request_seconds)

    async def ping(self) -> None:
        """Return if every node answers.

        Raises:
            StoreUnavailableError: one does not.
        """
        for address in self._nodes.masters():
            await self.ask_node(address, (b"PING",))

    async def ask_node(self, address: Address, command: Command) -> Reply:
        """Ask a node, whatever slots it has.

        Raises:
            StoreUnavailableError: it does not answer, or refuses.
        """
        (outcome,) = await self._send(address, [Request(0, command)], _ATTEMPTS)
        if isinstance(outcome, PersistenceError):
            raise outcome
        if isinstance(outcome, RedisError):
            raise translate(outcome, self._dialer.where(address)) from outcome
        return outcome

    async def _send(self, address: Address, requests: Sequence[Request], attempts: int) -> Sequence[Outcome]:
        error: PersistenceError = StoreUnavailableError("no attempt was made")
        for attempt in range(attempts):
            try:
                # A second attempt is made on a fresh connection: the others may be as old as the first.
                async with self._link(address, fresh=attempt > 0) as link:
                    return await carry(link, requests)
            except LinkLostError as lost:
                error = translate(lost, self._dialer.where(address))
                if attempts == 1:
                    error = CommitOutcomeUnknownError(f"a request was under way: {error}")
                error.__cause__ = lost
                if lost.timed_out:
                    break
            except PersistenceError as failure:
                error = failure
                break
        return [error] * len(requests)

    @asynccontextmanager
    async def _link(self, address: Address, *, fresh: bool) -> AsyncGenerator[Link]:
        """A connection for one exchange."""
        async with self._turn(address):
            if self._closed:
                raise StoreClosedError("the store is closed")
            idle = self._idle.setdefault(address, [])
            link: Link | None = None
            while idle and (link is None or not link.connected or fresh):
                if link is not None:
                    await link.abort()
                link = idle.pop()
            if link is not None and (fresh or not link.connected):
                await link.abort()
                link = None
            if link is None:
                link = await self._dialer.dial(address)
            try:
                yield link
            finally:
                # Unless those that it was with are forgotten.
                if self._idle.get(address) is idle and link.connected and not self._closed:
                    idle.append(link)
                else:
                    await link.abort()

    async def forget(self, address: Address) -> None:
        """Use no connection that waits: behind the name of a node there may be another one by now."""
        idle = self._idle.pop(address, [])
        while idle:
            await idle.pop().abort()

    @asynccontextmanager
    async def _turn(self, address: Address) -> AsyncGenerator[None]:
        """A place among those who use connections to a node."""
        turns, seconds = self._turns[address], self._dialer.request_seconds
        try:
            async with asyncio.timeout(seconds):
                await turns.acquire()
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"Redis at {self._dialer.where(address)} is too slow: all readers are busy for {seconds:g} s"
            ) from error
        try:
            yield
        finally:
            turns.release()

    def _row(self, slot: Slot, row: bytes) -> GetResponse:
        try:
            return read_row(row)
        except MalformedRowError as error:
            raise self._corrupt(slot) from error

    def _corrupt(self, slot: Slot) -> PersistenceError:
        return StoreCorruptError(
            f"key {self._layout.row(*slot)!r} in Redis, the place of key {slot[1]!r} in partition"
            f" {slot[0]!r}, holds no row of ours"
        )

    def _where(self, request: Request) -> str:
        try:
            return self._dialer.where(self._nodes.address(request.slot))
        except StoreUnavailableError:
            return "no node"

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        for links in self._idle.values():
            while links:
                await links.pop().aclose()


def _names(reply: Reply) -> list[bytes]:
    assert isinstance(reply, Sequence)
    names = [name for name in reply if isinstance(name, bytes)]
    assert len(names) == len(reply)
    return names
