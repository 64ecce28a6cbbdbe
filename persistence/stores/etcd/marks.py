"""Commits whose outcome can always be found out.

Each commit also replaces a key of its committer's own, its *mark*, and takes place only if that is still as
the commit before left it. When an answer does not come, the committer deletes the mark under the same
condition: if that works, the commit did not take place and never will, wherever in the cluster it may still
be on its way; if it does not, the mark tells at which revision the commit took place.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from grpc.aio import AioRpcError

from persistence.errors import CommitOutcomeUnknownError, PersistenceError
from persistence.proto import etcd_pb2
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.failures import details_of, is_out_of_space
from persistence.stores.etcd.keys import Keyspace
from persistence.stores.etcd.leases import Leases

__all__ = ["Mark", "new_mark"]

_LEASE_SECONDS: Final = 3600
_RENEW_SECONDS: Final = _LEASE_SECONDS / 2
_PAUSE_SECONDS: Final = 0.1
_REVOKE_SECONDS: Final = 1.0


class Mark:
    """The mark of one committer, which commits one thing at a time."""

    def __init__(self, key: bytes, lease: int, revision: int, renew_at: float) -> None:
        self._key = key
        self._lease = lease
        self._renew_at = renew_at
        self._condition = etcd_pb2.Compare(target=etcd_pb2.Compare.MOD, key=key, mod_revision=revision)
        self._replacement = etcd_pb2.RequestOp(request_put=etcd_pb2.PutRequest(key=key, lease=lease))
        self._look = etcd_pb2.RequestOp(request_range=etcd_pb2.RangeRequest(key=key))

    def begin(self) -> etcd_pb2.TxnRequest:
        """A request of which it can be found out whether it took place; what it is to do is added to it."""
        return etcd_pb2.TxnRequest(
            compare=[self._condition], success=[self._replacement], failure=[self._look]
        )

    def committed(self, revision: int) -> None:
        """Take note of a commit."""
        self._condition.mod_revision = revision

    def earlier(self, answer: etcd_pb2.TxnResponse) -> int | None:
        """Of a request that found the mark changed: the revision at which an earlier copy of it took place.

        gRPC may send a request again by itself, if it is sure that the server has not seen it. None: there
        was no copy; the mark is gone, or as old as the backup that the cluster was set back to.
        """
        found = _revision(answer)
        return found if found is not None and found > self._condition.mod_revision else None

    def is_old(self, now: float) -> bool:
        """Whether its lease may run out before long, by the clock of the event loop."""
        return now >= self._renew_at

    async def settle(self, client: Client, until: float) -> int | None:
        """The revision of the commit whose answer did not come; None if it did not and will not take place.

        The mark is of no use any more.

        Raises:
            CommitOutcomeUnknownError: it could not be found out by then.
        """
        clock = asyncio.get_running_loop().time
        members = len(client.cluster.endpoints)
        unanswered: AioRpcError | None = None
        full = gone_blindly = False
        while (left := until - clock()) > 0:
            # A member that hangs leaves another one time to answer.
            seconds = left / 2 if members > 1 else left
            try:
                if full:
                    found = await self._delete(client, seconds)
                else:
                    found = await self._delete_unless_changed(client, seconds)
            except AioRpcError as error:
                if is_out_of_space(error) and not full:
                    full = True
                else:
                    unanswered = error
                    gone_blindly = gone_blindly or full
                    client.replace_current()
                    await asyncio.sleep(min(_PAUSE_SECONDS, max(0.0, until - clock())))
                continue
            if found is None and unanswered is not None and not gone_blindly:
                return None  # an earlier attempt to delete it did work, although its answer got lost
            if found is None:
                raise CommitOutcomeUnknownError(
                    f"{client.cluster} did not answer a commit, and the commit's mark is gone"
                )
            # An older one than expected is that of a backup, to which the cluster was set back.
            return found if found > self._condition.mod_revision else None
        raise CommitOutcomeUnknownError(
            f"{client.cluster} did not answer a commit, nor in time the question what became of it"
            + (f": {details_of(unanswered)}" if unanswered else "")
        ) from unanswered

    async def _delete_unless_changed(self, client: Client, seconds: float) -> int | None:
        """The revision of the mark, None if there is none; it is deleted if that is the expected one."""
        delete = etcd_pb2.DeleteRangeRequest(key=self._key)
        request = etcd_pb2.TxnRequest(
            compare=[self._condition],
            success=[etcd_pb2.RequestOp(request_delete_range=delete)],
            failure=[self._look],
        )
        answer = await client.try_once(lambda connection: connection.txn, request, seconds=seconds)
        return self._condition.mod_revision if answer.succeeded else _revision(answer)

    async def _delete(self, client: Client, seconds: float) -> int | None:
        """The revision of the mark, None if there was none; it is deleted, also by a server that is full."""
        request = etcd_pb2.DeleteRangeRequest(key=self._key, prev_kv=True)
        answer = await client.try_once(lambda connection: connection.delete_range, request, seconds=seconds)
        return answer.prev_kvs[0].mod_revision if answer.prev_kvs else None

    async def revoke(self, client: Client) -> None:
        """Delete the mark, if that is possible; it vanishes by itself later."""
        request = etcd_pb2.LeaseRevokeRequest(id=self._lease)
        with contextlib.suppress(PersistenceError):
            await client.ask(lambda connection: connection.revoke, request, seconds=_REVOKE_SECONDS)


def _revision(answer: etcd_pb2.TxnResponse) -> int | None:
    """The revision of a mark that is not as expected; None if it is gone."""
    rows = answer.responses[0].response_range.kvs
    return rows[0].mod_revision if rows else None


async def new_mark(client: Client, keyspace: Keyspace, leases: Leases, seconds: float) -> Mark:
    """A mark, for commits from now on; made within so many seconds.

    Raises:
        StoreUnavailableError: the cluster does not answer, or refuses.
    """
    clock = asyncio.get_running_loop().time
    begun = clock()
    lease = (await leases.grant([_LEASE_SECONDS], seconds))[_LEASE_SECONDS]
    put = etcd_pb2.PutRequest(key=keyspace.new_commit(), lease=lease.id)
    left = max(0.0, begun + seconds - clock())
    try:
        answer = await client.ask(lambda connection: connection.put, put, seconds=left)
    except PersistenceError:
        leases.give_back([lease])
        raise
    return Mark(put.key, lease.id, answer.header.revision, begun + _RENEW_SECONDS)
