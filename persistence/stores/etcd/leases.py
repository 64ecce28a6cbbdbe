"""Time to live: rows of one request that live equally long share a lease, and etcd deletes them with it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from grpc.aio import AioRpcError

from persistence.errors import PersistenceError
from persistence.proto import etcd_pb2
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.failures import is_lease_present, translate

__all__ = ["Lease", "Leases"]

_MILLISECONDS: Final = 1000
_NANOSECONDS_PER_MILLISECOND: Final = 1_000_000
_MOST_NAMES: Final = 2**63 - 1


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
            PersistenceError: one could not be granted; the others are given back.
        """
        # The names are ours, so that a lease whose grant got no answer can be asked for again, or given back.
        asked = {ttl: secrets.randbelow(_MOST_NAMES) + 1 for ttl in ttls}
        if not asked:
            return {}
        outcomes = await asyncio.gather(
            *(self._grant(ttl, name, seconds) for ttl, name in asked.items()), return_exceptions=True
        )
        leases: dict[int, Lease] = {}
        for (ttl, name), outcome in zip(asked.items(), outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self.give_back(Lease(name, 0) for name in asked.values())
                raise outcome
            leases[ttl] = Lease(name, outcome)
        return leases

    async def _grant(self, ttl: int, name: int, seconds: float) -> int:
        """Have a lease granted; when it runs out."""
        now = time.time_ns() // _NANOSECONDS_PER_MILLISECOND
        request = etcd_pb2.LeaseGrantRequest(ttl_seconds=ttl, id=name)
        try:
            answer = await self._client.try_hard(
                lambda connection: connection.grant, request, seconds=seconds
            )
        except AioRpcError as error:
            if not is_lease_present(error):
                raise translate(error, str(self._client.cluster)) from error
            granted = ttl  # by an earlier attempt, whose answer got lost
        else:
            granted = answer.ttl_seconds
        return now + granted * _MILLISECONDS

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
