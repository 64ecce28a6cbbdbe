"""Which node has which slot: one server has them all, a cluster says who, and tells when a slot moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from redis.exceptions import RedisError

from persistence.errors import PersistenceError, StoreUnavailableError
from persistence.stores.redis.failures import translate
from persistence.stores.redis.links import Dialer, Link, LinkLostError, Reply
from persistence.stores.redis.settings import Address

__all__ = ["ClusterNodes", "Nodes", "OneNode"]

_SLOTS: Final = 16384


class Nodes(Protocol):
    """A map from hash slots to the nodes that serve them."""

    def address(self, slot: int) -> Address:
        """The node of a slot."""
        ...

    def masters(self) -> Sequence[Address]:
        """All nodes that have slots."""
        ...

    def moved(self, slot: int, address: Address) -> None:
        """A node has said that a slot is elsewhere."""
        ...

    async def refresh(self) -> None:
        """Ask again.

        Raises:
            StoreUnavailableError: nobody answers.
        """
        ...


class OneNode:
    """A server that is no cluster."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def address(self, slot: int) -> Address:  # noqa: ARG002  it has them all
        """The server."""
        return self._address

    def masters(self) -> Sequence[Address]:
        """The server."""
        return (self._address,)

    def moved(self, slot: int, address: Address) -> None:
        """Never said by a server that is no cluster."""

    async def refresh(self) -> None:
        """Nothing changes."""


class ClusterNodes:
    """The masters of a cluster, as the first of its nodes that answers knows them."""

    def __init__(self, dialer: Dialer, seeds: Sequence[Address]) -> None:
        self._dialer = dialer
        self._seeds = seeds
        self._owners: list[Address | None] = [None] * _SLOTS
        self._refreshing: asyncio.Task[None] | None = None

    def address(self, slot: int) -> Address:
        """The node of a slot.

        Raises:
            StoreUnavailableError: no node has it.
        """
        owner = self._owners[slot]
        if owner is None:
            raise StoreUnavailableError(f"no node of the Redis cluster at {self._where()} has slot {slot}")
        return owner

    def masters(self) -> Sequence[Address]:
        """All nodes that have slots."""
        return list(dict.fromkeys(owner for owner in self._owners if owner is not None))

    def moved(self, slot: int, address: Address) -> None:
        """A node has said that a slot is elsewhere."""
        self._owners[slot] = address

    async def refresh(self) -> None:
        """Ask the nodes that are known, one after the other, until one answers.

        Raises:
            StoreUnavailableError: nobody answers.
        """
        task = self._refreshing
        if task is None or task.done():
            task = self._refreshing = asyncio.create_task(self._refresh())
        # Shielded, as several lanes may wait for it.
        await asyncio.shield(task)

    async def _refresh(self) -> None:
        # All at once, and the first answer counts: those that are gone may keep us waiting.
        addresses = dict.fromkeys([*self.masters(), *self._seeds])
        asking = {asyncio.create_task(self._ask(address)) for address in addresses}
        failure: BaseException | None = None
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    self._owners = await answer
                except PersistenceError as error:
                    failure = failure or error
                else:
                    return
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        raise StoreUnavailableError(
            f"no node of the Redis cluster at {self._where()} says where the slots are: {failure}"
        ) from failure

    async def _ask(self, address: Address) -> list[Address | None]:
        link: Link | None = None
        try:
            link = await self._dialer.dial(address)
            (reply,) = await link.exchange([(b"CLUSTER", b"SLOTS")])
        except LinkLostError as lost:
            raise translate(lost, self._dialer.where(address)) from lost
        finally:
            if link is not None:
                await link.aclose()
        if isinstance(reply, RedisError):
            raise translate(reply, self._dialer.where(address)) from reply
        return _owners(reply, address[0])

    def _where(self) -> str:
        return self._dialer.where(self._seeds[0])


def _owners(reply: Reply, asked: str) -> list[Address | None]:
    """The owner of each slot from the answer to CLUSTER SLOTS."""
    owners: list[Address | None] = [None] * _SLOTS
    assert isinstance(reply, Sequence)  # ranges: first slot, last slot, master, replicas
    for entry in reply:
        assert isinstance(entry, Sequence)
        first, last, master = entry[0], entry[1], entry[2]
        assert isinstance(first, int)
        assert isinstance(last, int)
        assert isinstance(master, Sequence)
        host, port = master[0], master[1]
        assert isinstance(port, int)
        # A node that does not know its own name means the one under which it was asked.
        name = host.decode() if isinstance(host, bytes) and host not in {b"", b"?"} else asked
        owners[first : last + 1] = [(name, port)] * (last + 1 - first)
    return owners
