"""Leases: the shards are divided among the processes that are alive, so that no queue is run twice.

Each process keeps a row of its own alive, and each shard has a row that names its owner. Who should own a
shard is the same wherever it is computed from the same members; a shard changes hands when its owner lets go
of it, or when the owner's row has expired. State never rests on this: a commit checks its execution.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Final

import attrs

from hsm.engine._execution import decode_row
from hsm.engine._logs import engine_logger
from hsm.engine._processes import Presence, is_gone
from hsm.engine.clock import Clock, sleep_for
from hsm.errors import SerializationError
from persistence.errors import ETagMismatchError, StoreUnavailableError
from persistence.executions import (
    AFTER_SLASH,
    SETTINGS_PARTITION,
    member_key,
    shard_of_owner,
    shard_owner_key,
)
from persistence.proto.execution_pb2 import MemberRow, ShardOwnerRow
from persistence.store import (
    ABSENT,
    CheckRequest,
    Concurrency,
    DeleteRequest,
    EngineStore,
    Feature,
    GetRequest,
    Operation,
    SetOptions,
    SetRequest,
)

__all__ = ["Leases", "keep", "owner_of"]

_log: Final = engine_logger()
_FIRST_WRITE: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
_RENEWALS: Final = 3
# A process must be the first to believe that its lease is over.
_MARGIN: Final = 0.8
_IMPATIENCE: Final = 0.25
_PAUSE_SECONDS: Final = 0.1
# The store makes one commit of what comes together; thousands of shards must not outlast the lease.
_TOGETHER: Final = 100
_NANOS: Final = 10**9


def owner_of(shard: int, members: Iterable[str]) -> str:
    """The member that a shard belongs to: one that joins or leaves moves only shards of its own."""

    def weight(member: str) -> bytes:
        return hashlib.blake2b(f"{member}\0{shard}".encode(), digest_size=8).digest()

    return max(members, key=lambda member: (weight(member), member))


def _now() -> float:
    """Seconds that pass also while the process or the machine is stopped."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@attrs.frozen
class _Owner:
    member: str
    etag: str


@attrs.define
class _Seen:
    """A member as it was when it last changed."""

    etag: str
    since: float


class Leases:
    """The shards that this process runs, as long as it keeps its row alive.

    `take` is called for each shard that becomes ours, and `leave` for those that go, with the seconds that it
    may take to end what runs there. The rows are in `partition`: who has another one divides other shards.
    """

    def __init__(
        self,
        store: EngineStore,
        shards: int,
        seconds: int,
        new_id: Callable[[], str],
        take: Callable[[int], None],
        leave: Callable[[Collection[int], float], Awaitable[None]],
        *,
        partition: str = SETTINGS_PARTITION,
    ) -> None:
        self._store = store
        self._partition = partition
        self._shards = range(shards)
        self._seconds = seconds
        self._new_id = new_id
        self._take = take
        self._leave = leave
        self._expires = Feature.TTL in store.features
        self._presence = Presence()
        self._member = ""
        self._etag: str | None = None
        self._valid_until = 0.0
        self._seen: dict[str, _Seen] = {}
        self._owned: dict[int, str] = {}
        self._settled = False
        self._busy = False
        self._waker: asyncio.Future[None] | None = None
        self._hurried = False

    @property
    def owned(self) -> frozenset[int]:
        """The shards that are ours."""
        return frozenset(self._owned)

    @property
    def interval(self) -> float:
        """Seconds from one round to the next."""
        return self._seconds / _RENEWALS

    @property
    def settled(self) -> bool:
        """Whether a round has been made, from one end to the other."""
        return self._settled

    @property
    def busy(self) -> bool:
        """Whether a round is being made now."""
        return self._busy

    def valid(self) -> bool:
        """Whether what is ours is certainly nobody else's."""
        return _now() < self._valid_until

    def hurry(self) -> None:
        """Let the next round begin soon: a shard has changed hands."""
        if self._waker is not None and not self._waker.done():
            self._hurried = True
            self._waker.set_result(None)

    async def rest(self, clock: Clock, seconds: float) -> None:
        """Wait for the time of the next round."""
        loop = asyncio.get_running_loop()
        self._hurried = False
        self._waker = loop.create_future()
        await sleep_for(clock, round(seconds * _NANOS), self._waker)
        if self._hurried:
            # Several shards may change hands together.
            await sleep_for(clock, round(_PAUSE_SECONDS * _NANOS), loop.create_future())

    async def round(self) -> None:
        """Stay alive, see who else is, take what is ours and leave what is not.

        Raises:
            PersistenceError: the store did not do it; the next round may.
        """
        self._busy = True
        try:
            await self._go_round()
        finally:
            self._busy = False

    async def _go_round(self) -> None:
        await self._renew()
        members = await self._living()
        owners = await self._owners()
        await self._lose(
            shard
            for shard in self._owned
            if (owner := owners.get(shard)) is None or owner.member != self._member
        )
        wanted = {shard for shard in self._shards if owner_of(shard, members) == self._member}
        # Some of these may not be known to be ours: an answer of the store was lost.
        ours = {shard: owner.etag for shard, owner in owners.items() if owner.member == self._member}
        await self._give({shard: etag for shard, etag in ours.items() if shard not in wanted})
        free = [
            shard
            for shard in sorted(wanted - self._owned.keys())
            if (owner := owners.get(shard)) is None
            or owner.member == self._member
            or owner.member not in members
        ]
        for start in range(0, len(free), _TOGETHER):
            await _all(self._claim(shard, owners.get(shard)) for shard in free[start : start + _TOGETHER])
        self._settled = True

    async def close(self) -> None:
        """Give everything back, so that nobody has to wait for the lease to run out."""
        self._presence.end()
        self._valid_until = 0.0
        if not self._member:
            return
        operations = [
            DeleteRequest(partition=self._partition, key=shard_owner_key(shard), etag=etag)
            for shard, etag in self._owned.items()
        ]
        self._owned.clear()
        self._etag = None
        # First, and whatever its etag is by now: the shards are free then, and what follows tells the others.
        await self._store.delete(DeleteRequest(partition=self._partition, key=member_key(self._member)))
        limit = self._store.limits.operations
        for start in range(0, len(operations), limit):
            # One that was taken already: so the others will be.
            with contextlib.suppress(ETagMismatchError):
                await self._store.multi(operations[start : start + limit])

    async def _renew(self) -> None:
        before = _now()
        if self._etag is not None:
            try:
                self._etag = await self._store.multi([self._own_row(self._etag)])
            except ETagMismatchError:
                # Nobody else writes it: if it is there, an answer of the store has not arrived here.
                key = member_key(self._member)
                self._etag = (await self._store.get(GetRequest(partition=self._partition, key=key))).etag
                if self._etag is not None:
                    await self._renew()
                    return
                _log.warning("the lease of this process ran out; its shards are given up")
                self._valid_until = 0.0
                await self._lose(self._owned)
        if self._etag is None:
            self._member = self._new_id()
            self._etag = await self._store.multi([self._own_row(None)])
        self._valid_until = before + self._seconds * _MARGIN

    def _own_row(self, etag: str | None) -> SetRequest:
        return SetRequest(
            partition=self._partition,
            key=member_key(self._member),
            value=self._presence.row().SerializeToString(),
            etag=etag,
            metadata={"ttlInSeconds": str(self._seconds)} if self._expires else {},
            options=SetOptions() if etag else _FIRST_WRITE,
        )

    async def _lose(self, shards: Iterable[int]) -> None:
        """Note that shards are not ours any more."""
        lost = list(shards)
        for shard in lost:
            del self._owned[shard]
        await self._leave(lost, 0)

    async def _living(self) -> frozenset[str]:
        """The members that are alive, this one among them."""
        now = _now()
        living = {self._member}
        seen: dict[str, _Seen] = {}
        async for item in self._store.scan(self._partition, "m/", "m" + AFTER_SLASH):
            member = item.key.removeprefix("m/")
            if member == self._member:
                continue
            last = self._seen.get(member)
            if last is None or last.etag != item.etag:
                last = _Seen(item.etag, now)
            if self._is_dead(item.key, item.value, now - last.since) and await self._bury(
                item.key, item.etag
            ):
                continue
            seen[member] = last
            living.add(member)
        self._seen = seen
        return frozenset(living)

    def _is_dead(self, key: str, value: bytes, unchanged: float) -> bool:
        try:
            row = decode_row(MemberRow, key, value)
        except SerializationError as error:
            _log.error("a member that cannot be read is waited for: %s", error)
            row = MemberRow()
        # A row that does not expire by itself is watched: whoever is alive writes it in time.
        return is_gone(row) or (not self._expires and unchanged > self._seconds / _MARGIN)

    async def _bury(self, key: str, etag: str) -> bool:
        """Delete the row of a dead member; False if it is not dead after all."""
        try:
            await self._store.multi([DeleteRequest(partition=self._partition, key=key, etag=etag)])
        except ETagMismatchError:
            return False
        return True

    async def _owners(self) -> Mapping[int, _Owner]:
        owners: dict[int, _Owner] = {}
        async for item in self._store.scan(self._partition, "s/", "s" + AFTER_SLASH):
            shard = shard_of_owner(item.key)
            if shard is None or shard not in self._shards:
                continue
            try:
                member = decode_row(ShardOwnerRow, item.key, item.value).member
            except SerializationError as error:
                _log.error("the owner of a shard cannot be read, and is replaced: %s", error)
                member = ""
            owners[shard] = _Owner(member, item.etag)
        return owners

    async def _claim(self, shard: int, owner: _Owner | None) -> None:
        """Take a shard, unless somebody else was faster."""
        value = ShardOwnerRow(member=self._member).SerializeToString()
        key = shard_owner_key(shard)
        operations: list[Operation] = [
            CheckRequest(self._partition, member_key(self._member), self._etag or ""),
        ]
        if owner is None:
            operations.append(
                SetRequest(partition=self._partition, key=key, value=value, options=_FIRST_WRITE)
            )
        else:
            if owner.member != self._member:
                operations.append(CheckRequest(self._partition, member_key(owner.member), ABSENT))
            operations.append(SetRequest(partition=self._partition, key=key, value=value, etag=owner.etag))
        try:
            etag = await self._store.multi(operations)
        except ETagMismatchError:
            return
        self._owned[shard] = etag
        self._take(shard)

    async def _give(self, shards: Mapping[int, str]) -> None:
        """Let somebody else have shards, of which the etags are given."""
        if not shards:
            return
        # All of them in the time of one, which is part of the lease.
        await self._leave(shards.keys(), self.interval)
        for shard in shards:
            self._owned.pop(shard, None)
        given = list(shards.items())
        for start in range(0, len(given), _TOGETHER):
            await _all(self._free(shard, etag) for shard, etag in given[start : start + _TOGETHER])

    async def _free(self, shard: int, etag: str) -> None:
        with contextlib.suppress(ETagMismatchError):  # it was taken from us before
            await self._store.multi(
                [DeleteRequest(partition=self._partition, key=shard_owner_key(shard), etag=etag)]
            )


async def keep(leases: Leases, clock: Clock, changed: Callable[[], None]) -> None:
    """Go round for ever; `changed` is called after each."""
    held = False
    while True:
        began = clock.time_ns()
        pause = leases.interval
        try:
            await leases.round()
        except Exception as error:  # noqa: BLE001 - without the store there is no lease, and nothing is run
            level = logging.DEBUG if isinstance(error, StoreUnavailableError) else logging.WARNING
            _log.log(level, "the lease could not be renewed, which is tried again: %r", error)
            pause *= _IMPATIENCE
        if held and not leases.valid():
            _log.warning("the lease has run out; no task is run until there is a new one")
        held = leases.valid()
        changed()
        # A round that took its time has used up some of the lease.
        spent = max(clock.time_ns() - began, 0) / _NANOS
        await leases.rest(clock, max(pause - spent, _PAUSE_SECONDS))


async def _all(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Do things together, and raise the first error when all are done."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if outcome is not None:
            raise outcome
