"""Time to live: rows of one request that live equally long share a lease, and etcd deletes them with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from persistence.errors import PersistenceError
from persistence.proto import etcd_pb2
from persistence.stores.etcd.client import Client

__all__ = ["Lease", "Leases"]

_MILLISECONDS: Final = 1000
_NANOSECONDS_PER_MILLISECOND: Final = 1_000_000


class Lease(NamedTuple):
    """A lease of etcd's.

    Attributes:
        id: etcd's name for it.
        expires_milliseconds: when it runs out, since 1970, by the clock of this machine. etcd may have made
            it longer than was asked for: a few seconds are the shortest.
    """

    id: int
    expires_milliseconds: int


class Leases:
    """Grants leases, and gives back those that no row got."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._returning: set[asyncio.Task[None]] = set()

    async def grant(self, ttls: Iterable[int], seconds: float) -> Mapping[int, Lease]:
        """A lease for each time to live (in seconds), granted within so many seconds.

        Raises:
            PersistenceError: one could not be granted.
        """
        asked = list(ttls)
        if not asked:
            return {}
        leases = await asyncio.gather(*(self._grant(ttl, seconds) for ttl in asked))
        return dict(zip(asked, leases, strict=True))

    async def _grant(self, ttl: int, seconds: float) -> Lease:
        now = time.time_ns() // _NANOSECONDS_PER_MILLISECOND
        request = etcd_pb2.LeaseGrantRequest(ttl_seconds=ttl)
        answer = await self._client.ask(lambda connection: connection.grant, request, seconds=seconds)
        return Lease(answer.id, now + answer.ttl_seconds * _MILLISECONDS)

    def give_back(self, leases: Iterable[Lease]) -> None:
        """Revoke leases, in the background; what cannot be revoked runs out by itself."""
        for lease in leases:
            task = asyncio.get_running_loop().create_task(self._revoke(lease))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    async def _revoke(self, lease: Lease) -> None:
        request = etcd_pb2.LeaseRevokeRequest(id=lease.id)
        with contextlib.suppress(PersistenceError):
            await self._client.ask(lambda connection: connection.revoke, request)

    async def aclose(self) -> None:
        """Return when everything is given back."""
        if self._returning:
            await asyncio.wait(self._returning)
