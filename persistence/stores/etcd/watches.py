"""Watching: one stream of changes from the cluster for everything that is watched here.

A watch begins after the newest revision that the store has heard of when it is asked for, so that it tells
of everything that is written later, however long the stream takes to be there. After a broken connection it
goes on where it was; if the cluster has forgotten what came in between, it tells of a RESYNC.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Final, TypeAlias

from grpc.aio import AioRpcError, StreamStreamCall

from persistence.proto import etcd_pb2
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.connection import Connection
from persistence.stores.etcd.failures import details_of
from persistence.stores.etcd.keys import Keyspace
from persistence.watching import Watch

__all__ = ["Watcher"]

_log = logging.getLogger(__name__)

# A member that is cut off from the others would keep the stream open, and tell of nothing: it shall end it.
_REQUIRE_LEADER: Final = ("hasleader", "true")
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0

_Stream: TypeAlias = StreamStreamCall[etcd_pb2.WatchRequest, etcd_pb2.WatchResponse]


class _RefusedError(Exception):
    """The server does not go on with a watch."""


class _Target:
    """A prefix of a partition that somebody watches."""

    def __init__(self, first: bytes, skipped: int, next_revision: int) -> None:
        self.first = first
        self.skipped = skipped
        self.next_revision = next_revision
        self.watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def resync(self) -> None:
        for watch in self.watches:
            watch.resync()

    def tell(self, response: etcd_pb2.WatchResponse) -> None:
        for event in response.events:
            # A key that is no text is not of a store of ours, and nobody asks for it.
            key = event.kv.key[self.skipped :].decode(errors="replace")
            for watch in self.watches:
                watch.notify(key)
        if response.fragment:
            return
        # What follows may be of the revision of the last event at the earliest, not of the header's, because
        # a watch that catches up is told older events under a newer header.
        newest = response.events[-1].kv.mod_revision if response.events else response.header.revision
        self.next_revision = max(self.next_revision, newest + 1)


class Watcher:
    """Tells watches what changes in the cluster, over a connection of its own that is made when needed."""

    def __init__(self, client: Client, keyspace: Keyspace) -> None:
        self._client = client
        self._keyspace = keyspace
        self._targets: dict[tuple[str, str], _Target] = {}
        self._by_id: dict[int, _Target] = {}
        self._next_id = 1
        self._requests: asyncio.Queue[etcd_pb2.WatchRequest] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def watch(self, partition: str, prefix: str) -> Watch:
        """Watch the keys with a prefix."""
        watch = Watch(prefix)
        target = self._targets.get((partition, prefix))
        if target is None:
            first = self._keyspace.partition(partition)
            target = _Target(first + prefix.encode(), len(first), self._client.revision + 1)
            self._targets[partition, prefix] = target
            self._create(target)
        # Else the target has told of nothing yet that comes later than now.
        target.watches.add(watch)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="watches of etcd")
        return watch

    async def aclose(self) -> None:
        """End all watches."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        for target in self._targets.values():
            for watch in target.watches:
                watch.end()

    def _create(self, target: _Target) -> None:
        """Let the stream ask for a target, from the revision that it has not told of."""
        number = self._next_id
        self._next_id += 1
        self._by_id[number] = target
        end = target.first[:-1] + bytes([target.first[-1] + 1])  # the last byte is of UTF-8 or NUL: never 255
        create = etcd_pb2.WatchCreateRequest(
            key=target.first,
            range_end=end,
            start_revision=target.next_revision,
            progress_notify=True,
            watch_id=number,
            fragment=True,
        )
        self._requests.put_nowait(etcd_pb2.WatchRequest(create_request=create))

    def _cancel(self, number: int) -> None:
        del self._by_id[number]
        cancel = etcd_pb2.WatchCancelRequest(watch_id=number)
        self._requests.put_nowait(etcd_pb2.WatchRequest(cancel_request=cancel))

    async def _run(self) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            connection = self._client.new_connection()
            heard = False
            try:
                heard = await self._listen(connection)
            except Exception:  # noqa: BLE001  whatever it was, readers must not wait for ever
                _log.exception("the watch of %s broke off", self._client.cluster)
                for target in self._targets.values():
                    target.resync()
            finally:
                await connection.aclose()
            pause_seconds = _FIRST_PAUSE_SECONDS if heard else min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause_seconds)
            self._client.next_endpoint()
            self._requests = asyncio.Queue()
            self._by_id.clear()
            for target in self._targets.values():
                self._create(target)

    async def _listen(self, connection: Connection) -> bool:
        """Tell of changes until the stream breaks; whether it worked for a time."""
        heard = False
        writing: asyncio.Task[None] | None = None
        try:
            metadata = await self._client.metadata()
            stream = connection.watch()(metadata=(*metadata, _REQUIRE_LEADER))
            writing = asyncio.get_running_loop().create_task(self._write(stream))
            while True:
                response = await stream.read()
                if not isinstance(response, etcd_pb2.WatchResponse):
                    return heard  # the end of the stream
                self._handle(response)
                heard = True
        except AioRpcError as error:
            _log.info("the watch of %s broke off: %s", self._client.cluster, details_of(error))
        except _RefusedError as error:
            self._client.forget_token()
            _log.warning("%s refuses to be watched: %s", self._client.cluster, error)
            heard = False
        finally:
            if writing is not None:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        return heard

    async def _write(self, stream: _Stream) -> None:
        requests = self._requests
        while True:
            await stream.write(await requests.get())

    def _handle(self, response: etcd_pb2.WatchResponse) -> None:
        number = response.watch_id
        target = self._by_id.get(number)
        if target is None:
            if response.canceled and response.created:
                raise _RefusedError(response.cancel_reason)  # some versions name no watch then
            return
        if response.compact_revision:
            self._restart(number, target, response.compact_revision)
        elif response.canceled:
            raise _RefusedError(response.cancel_reason)
        elif response.created:
            if response.header.revision < target.next_revision - 1:
                # The cluster has been set back to an older state.
                self._restart(number, target, response.header.revision + 1)
        elif target.watches:
            target.tell(response)
        else:
            self._targets = {name: other for name, other in self._targets.items() if other is not target}
            self._cancel(number)

    def _restart(self, number: int, target: _Target, revision: int) -> None:
        """Begin anew at a revision, because what came in between is not told."""
        self._cancel(number)
        target.next_revision = revision
        target.resync()
        self._create(target)
