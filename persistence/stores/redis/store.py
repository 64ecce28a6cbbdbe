"""The store on Redis or Valkey: lanes write, a few connections read, and one a node listens."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import attrs

from persistence.backends import REDIS
from persistence.batcher import in_task
from persistence.cleaning import Cleaner
from persistence.decision import Slot
from persistence.errors import FeatureMissingError, StoreClosedError, StoreUnavailableError
from persistence.gathering import Rows
from persistence.options import check_partition, check_text, prefix_end
from persistence.paging import Page, Window
from persistence.server import ServerStore
from persistence.store import Change, Feature, Limits
from persistence.stores.redis.layout import Layout
from persistence.stores.redis.links import Dialer, Link
from persistence.stores.redis.listening import Listeners
from persistence.stores.redis.nodes import ClusterNodes, Nodes, OneNode
from persistence.stores.redis.reading import Reader
from persistence.stores.redis.schema import ServerFacts, claim, inspect, try_out
from persistence.stores.redis.settings import Address, RedisOptions, Target, parse_url
from persistence.stores.redis.sweeping import Sweeper
from persistence.stores.redis.writing import Lane, LaneOptions

__all__ = ["RedisStore", "from_url"]

_SHARDED_CHANNELS: Final = (7, 0)
_FAMILY_ROWS: Final = 1000


@attrs.frozen
class _Open:
    """What an open store has.

    Attributes:
        numbers: of the nodes that there were when it was opened; each has lanes of its own.
    """

    nodes: Nodes
    layout: Layout
    numbers: Mapping[Address, int]
    reader: Reader
    lanes: Sequence[Lane]
    listeners: Listeners | None
    publish: bytes
    cleaner: Cleaner
    durability: str
    server_version: str

    async def aclose(self) -> None:
        """Release everything."""
        await self.cleaner.aclose()
        if self.listeners is not None:
            await self.listeners.aclose()
        for lane in self.lanes:
            await lane.aclose()
        await self.reader.aclose()


class RedisStore(ServerStore):
    """A store on Redis (6.2 or newer) or Valkey, on one server or on a cluster.

    How durable it is, the server's settings decide: see `durability`. The transactions of a batch that
    have a partition in common are one call of a script, which the server carries out or not as a whole.
    After a connection broke off in the middle of a commit the store finds out what became of it.

    Rows expire by the server's clock. Watches are not told of that.
    """

    def __init__(self, target: Target, *, options: RedisOptions | None = None) -> None:
        """Make a store for a server, or for a cluster one of whose nodes is named."""
        super().__init__()
        self._target = target
        self._options = options or RedisOptions()
        self._state: _Open | None = None

    def __repr__(self) -> str:
        return f"<RedisStore {self._target} {self._options.prefix}>"

    @property
    def features(self) -> frozenset[Feature]:
        """Everything; without WATCH if the server has no channels that we could use."""
        if self._state is not None and self._state.listeners is None:
            return REDIS.features - {Feature.WATCH}
        return REDIS.features

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        return REDIS.limits

    @property
    def durability(self) -> str:
        """What a crash can lose, in a sentence; of a cluster that of the worst of its masters.

        Raises:
            StoreClosedError: the store is not open.
        """
        return self._opened().durability

    @property
    def server_version(self) -> str:
        """Name and version of the server; of a cluster those of its oldest master.

        Raises:
            StoreClosedError: the store is not open.
        """
        return self._opened().server_version

    async def _open(self, properties: Mapping[str, str]) -> None:
        options = self._options = self._options.changed(properties)
        target = self._target
        dialer = Dialer(target, options)
        layout = Layout(options.prefix, target.database)
        nodes = await self._find_nodes(dialer)
        masters = nodes.masters()
        facts = [await self._inspect(dialer, address) for address in masters]
        async with _dialled(dialer, nodes.address(layout.hash_slot_of(layout.meta))) as link:
            await claim(link, dialer.where(link.address), layout, create=options.create)
        publish = await self._try_out(dialer, nodes, layout, facts)
        reader = Reader(nodes, dialer, layout, options.readers)
        lane_options = LaneOptions(
            publish=publish,
            wait_milliseconds=int(options.wait_timeout.total_seconds() * 1000),
            keeps_logs=not options.allow_eviction,
            reconnected=reader.forget,
        )
        name = secrets.token_hex(8)
        lanes = [
            Lane(f"{name}.{number}", nodes, dialer, layout, lane_options)
            for number in range(options.lanes * len(masters))
        ]
        self._state = _Open(
            nodes=nodes,
            layout=layout,
            numbers={address: number for number, address in enumerate(masters)},
            reader=reader,
            lanes=lanes,
            listeners=Listeners(nodes, dialer, layout, sharded=target.cluster) if publish else None,
            publish=publish,
            cleaner=Cleaner(Sweeper(nodes, reader, layout).turn, options.cleanup_interval.total_seconds()),
            durability=max(fact.durability for fact in facts)[1],
            server_version=min((fact.version, fact.name) for fact in facts)[1],
        )
        self.start_lanes(*(in_task(lane.commit) for lane in lanes))

    async def _find_nodes(self, dialer: Dialer) -> Nodes:
        address = (self._target.host, self._target.port)
        if not self._target.cluster:
            return OneNode(address)
        nodes = ClusterNodes(dialer, [address, *self._options.further_nodes()])
        await nodes.refresh()
        if not nodes.masters():
            raise StoreUnavailableError(f"the Redis cluster at {dialer.where(address)} has no slots yet")
        return nodes

    async def _inspect(self, dialer: Dialer, address: Address) -> ServerFacts:
        where = dialer.where(address)
        async with _dialled(dialer, address) as link:
            facts = await inspect(link, where, allow_eviction=self._options.allow_eviction)
        if facts.cluster and not self._target.cluster:
            raise StoreUnavailableError(
                f"Redis at {where} is a node of a cluster; the URL of a cluster begins with redis+cluster://"
            )
        return facts

    async def _try_out(
        self, dialer: Dialer, nodes: Nodes, layout: Layout, facts: Sequence[ServerFacts]
    ) -> bytes:
        """Learn what we may do; the command by which changes are told, or nothing."""
        publish = b"PUBLISH"
        if self._target.cluster:
            # A message to everybody would go to every node; older servers know no other.
            publish = b"SPUBLISH" if min(fact.version for fact in facts) >= _SHARDED_CHANNELS else b""
        name = secrets.token_hex(8)
        _, _, row, _ = layout.trial(name)
        async with _dialled(dialer, nodes.address(layout.hash_slot_of(row))) as link:
            may_publish = await try_out(link, dialer.where(link.address), layout, name, publish)
        return publish if may_publish else b""

    async def _close(self) -> None:
        state, self._state = self._opened(), None
        await state.aclose()

    async def _read_rows(
        self,
        slots: Sequence[Slot],
        *,
        eventual: bool,  # noqa: ARG002  a master answers as fast as a replica
    ) -> Rows:
        return await self._opened().reader.rows(slots)

    async def _read_page(self, window: Window, rows: int) -> Page:
        return await self._opened().reader.page(window, rows)

    async def _read_keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        return await self._opened().reader.keys(window, rows)

    async def _ping(self) -> None:
        await self._opened().reader.ping()

    def lane_of(self, partition: str) -> int:
        """The lane of a partition: one of its node's, so that a node that hangs holds up no other's.

        It is another one when the partition has moved. That does no harm, as the server carries a call out or
        not as a whole, whichever lane it comes from.
        """
        state, lanes = self._opened(), self._options.lanes
        address = self._place_of(partition)
        number = state.numbers.get(address, hash(address) % len(state.numbers)) if address else 0
        return number * lanes + hash(partition) % lanes

    def _place_of(self, partition: str) -> Address | None:
        state = self._opened()
        try:
            return state.nodes.address(state.layout.hash_slot(partition))
        except StoreUnavailableError:
            return None

    async def _delete_family(self, partition: str, family: str) -> int:
        state = self._opened()
        window = Window(partition, family, prefix_end(family), reverse=False)
        deleted = 0
        while True:
            keys, last = await state.reader.keys(window, _FAMILY_ROWS)
            members = [key for key in keys if "||" not in key[len(family) :]]
            deleted += await state.reader.delete(partition, members, state.publish)
            if last or not keys:
                return deleted
            window = window.beyond(keys[-1])

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        """Keys with this prefix that may have changed, at least once each; RESYNC after reconnects.

        RESYNC also comes first, once the server has begun to tell. Of rows that expire nothing is told.

        Raises:
            FeatureMissingError: the server has no channels that we could use.
        """
        self.check_open()
        check_partition(partition)
        check_text(prefix, "prefix")
        listeners = self._opened().listeners
        if listeners is None:
            raise FeatureMissingError(f"{self!r} cannot watch: the server lets us publish nothing")
        return listeners.watch(partition, prefix)

    def _opened(self) -> _Open:
        if self._state is None:
            raise StoreClosedError(f"{self!r} is not open; use `async with`, or call `init`")
        return self._state


@asynccontextmanager
async def _dialled(dialer: Dialer, address: Address) -> AsyncGenerator[Link]:
    """A connection for a short time."""
    link = await dialer.dial(address)
    try:
        yield link
    finally:
        await link.aclose()


def from_url(url: str) -> RedisStore:
    """A store for `redis://host:port/database`, `redis+cluster://host:port`; the query has `RedisOptions`.

    `rediss` is with TLS; `valkey` and `valkeys` mean the same.

    Raises:
        InvalidRequestError: the URL is none of ours, or holds an unknown option.
    """
    target, options = parse_url(url)
    return RedisStore(target, options=RedisOptions().changed(options))
