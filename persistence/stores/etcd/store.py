"""The store on etcd: what it is made of, and its life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import attrs

from persistence.backends import ETCD
from persistence.batcher import in_task
from persistence.decision import Slot
from persistence.errors import StoreClosedError
from persistence.gathering import Rows
from persistence.options import check_partition, check_text
from persistence.paging import Page, Window
from persistence.proto import etcd_pb2
from persistence.server import ServerStore
from persistence.store import Change, Feature, Limits
from persistence.stores.etcd.capacity import Capacity
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.deleting import delete_family
from persistence.stores.etcd.keys import Keyspace
from persistence.stores.etcd.leases import Leases
from persistence.stores.etcd.reading import Reader
from persistence.stores.etcd.schema import check_version, open_schema
from persistence.stores.etcd.settings import Cluster, EtcdOptions, parse_url
from persistence.stores.etcd.watches import Watcher
from persistence.stores.etcd.writing import Writer

__all__ = ["EtcdStore", "from_url"]


@attrs.frozen
class _Open:
    """What an open store has."""

    version: str
    client: Client
    keyspace: Keyspace
    capacity: Capacity
    reader: Reader
    leases: Leases
    writers: Sequence[Writer]
    watcher: Watcher


class EtcdStore(ServerStore):
    """A store in a cluster of etcd, version 3.4 or newer.

    A write has been agreed on by a majority of the cluster when it returns, and a read sees everything that
    was written before it, unless it asks for eventual consistency, which any member answers by itself. The
    etag of a row is the revision at which it was written.

    etcd is made for small data: values up to 1 MiB, some gigabytes in all. It keeps what was overwritten
    until it is compacted, so let the cluster do that (its flag `--auto-compaction-retention`). Rows with a
    time to live have leases: the shortest time is about two seconds, the election of a leader prolongs all of
    them, and a row is there until etcd has deleted it. A scan backwards costs the server as much as its whole
    window, at each page.

    A cluster that is restored from a backup gives the revisions since then once more, and with them etags to
    other rows than before; `etcdutl snapshot restore --bump-revision` sees to it that none comes twice.

    It belongs to the event loop in which it is opened, and cannot be used after a fork.
    """

    def __init__(self, cluster: Cluster, *, options: EtcdOptions | None = None) -> None:
        """Make a store for a cluster.

        Raises:
            InvalidRequestError: options that cannot be.
        """
        super().__init__()
        self._cluster = cluster
        self._options = options or EtcdOptions()
        self._options.check()
        self._state: _Open | None = None

    def __repr__(self) -> str:
        return f"<EtcdStore {self._cluster}/?prefix={self._options.prefix}>"

    @property
    def features(self) -> frozenset[Feature]:
        """Every feature there is."""
        return ETCD.features

    @property
    def limits(self) -> Limits:
        """What one request may hold, as far as the server's flags are known."""
        return ETCD.limits if self._state is None else self._state.capacity.limits

    @property
    def durability(self) -> str:
        """What a crash can lose."""
        return (
            "a write is on the disks of a majority of the members before it returns, unless they run with"
            " --unsafe-no-fsync, which cannot be asked: then a crash of the machine can lose writes"
        )

    @property
    def server_version(self) -> str:
        """Name and version of the member that was asked first.

        Raises:
            StoreClosedError: the store is not open.
        """
        return f"etcd {self._opened().version}"

    async def _open(self, properties: Mapping[str, str]) -> None:
        options = self._options = self._options.changed(properties)
        client = Client(self._cluster, options)
        keyspace = Keyspace(options.prefix)
        capacity = Capacity()
        try:
            version = await check_version(client)
            await open_schema(client, keyspace, create=options.create)
            await capacity.find_out(client, keyspace.meta)
        except BaseException:
            await client.aclose()
            raise
        reader = Reader(client, keyspace, capacity)
        leases = Leases(client)
        writers = [Writer(client, keyspace, capacity, reader, leases) for _ in range(options.lanes)]
        watcher = Watcher(client, keyspace)
        self._state = _Open(version, client, keyspace, capacity, reader, leases, writers, watcher)
        self.start_lanes(*(in_task(writer.commit) for writer in writers))

    async def _close(self) -> None:
        state = self._opened()
        await state.watcher.aclose()
        await asyncio.gather(*(writer.aclose() for writer in state.writers))
        await state.leases.aclose()
        await state.client.aclose()

    def _opened(self) -> _Open:
        if self._state is None:
            raise StoreClosedError(f"{self!r} is not open; use `async with`, or call `init`")
        return self._state

    async def _ping(self) -> None:
        state = self._opened()
        request = etcd_pb2.RangeRequest(key=state.keyspace.meta, keys_only=True)
        await state.client.ask(lambda connection: connection.range, request)

    async def _read_rows(self, slots: Sequence[Slot], *, eventual: bool) -> Rows:
        return await self._opened().reader.rows(slots, eventual=eventual)

    async def _read_page(self, window: Window, rows: int) -> Page:
        return await self._opened().reader.page(window, rows)

    async def _read_keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        return await self._opened().reader.keys(window, rows)

    async def _delete_family(self, partition: str, family: str) -> int:
        state = self._opened()
        return await delete_family(
            state.client, state.keyspace, state.capacity, state.reader, partition, family
        )

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        """Keys with this prefix that may change from now on, at least once each.

        A reconnection loses nothing. RESYNC: too many changes wait to be read, or the cluster has compacted
        away what changed while it could not be reached.
        """
        self.check_open()
        check_partition(partition)
        check_text(prefix, "prefix")
        return self._opened().watcher.watch(partition, prefix)


def from_url(url: str) -> EtcdStore:
    """A store for `etcd://user:password@host:2379,host:2379/?prefix=hsm/`, or `etcds://` with TLS.

    The query holds `EtcdOptions`. User, password and TLS files may stand in the environment, too, in the
    variables that etcdctl knows (ETCDCTL_USER, ETCDCTL_PASSWORD, ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY).

    Raises:
        InvalidRequestError: the URL names no host, or holds an unknown option.
    """
    cluster, options = parse_url(url)
    return EtcdStore(cluster, options=options)
