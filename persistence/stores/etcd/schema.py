"""The mark of a store: what lies under a prefix is ours, and which releases can work with it."""

from __future__ import annotations

import json
from typing import Final

from grpc import StatusCode
from grpc.aio import AioRpcError

from persistence.errors import StoreCorruptError, StoreUnavailableError
from persistence.migrations import Migration, SchemaVersion, missing_migrations
from persistence.proto import etcd_pb2
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.failures import translate
from persistence.stores.etcd.keys import Keyspace

__all__ = ["MIGRATIONS", "check_version", "open_schema"]

MIGRATIONS: Final = (Migration(version=1, statements=(), oldest=1),)
"""The versions of what `keys` and `envelope` describe."""

_APPLICATION: Final = "hsm-toolkit"
_OLDEST_SERVER: Final = (3, 4)


async def check_version(client: Client) -> str:
    """The version of the member that answers.

    Raises:
        StoreUnavailableError: it is older than 3.4, or does not answer.
    """
    try:
        answer = await client.try_hard(lambda connection: connection.status, etcd_pb2.StatusRequest())
    except AioRpcError as error:
        if error.code() is StatusCode.PERMISSION_DENIED:
            return "of a version that it does not tell us"
        raise translate(error, str(client.cluster)) from error
    numbers = [int(number) for number in answer.version.split(".")[:2] if number.isdecimal()]
    if tuple(numbers) < _OLDEST_SERVER:
        raise StoreUnavailableError(
            f"{client.cluster} is etcd {answer.version}; 3.4 is the oldest that will do"
        )
    return answer.version


async def open_schema(client: Client, keyspace: Keyspace, *, create: bool) -> None:
    """See to it that what lies under the prefix is ours; a prefix that nobody uses becomes ours.

    Raises:
        StoreCorruptError: somebody else's keys lie there, or those of a newer release; they were left.
        StoreUnavailableError: nobody uses the prefix, and `create` is false; or the cluster does not answer.
    """
    where = f"{client.cluster} under the prefix {keyspace.prefix.decode()!r}"
    unmarked = etcd_pb2.Compare(target=etcd_pb2.Compare.CREATE, key=keyspace.meta, create_revision=0)
    first, end = keyspace.everything()
    look = etcd_pb2.TxnRequest(
        compare=[unmarked],
        success=[_read(etcd_pb2.RangeRequest(key=first, range_end=end, limit=1, keys_only=True))],
        failure=[_read(etcd_pb2.RangeRequest(key=keyspace.meta))],
    )
    answer = await client.ask(lambda connection: connection.txn, look)
    rows = answer.responses[0].response_range.kvs
    if not answer.succeeded:
        found = _read_mark(rows[0].value, where)
        if missing_migrations(MIGRATIONS, found, where, create=create):
            as_it_was = etcd_pb2.Compare(
                target=etcd_pb2.Compare.MOD, key=keyspace.meta, mod_revision=rows[0].mod_revision
            )
            await _write_mark(client, keyspace, as_it_was, where)
        return
    if rows:
        raise StoreCorruptError(
            f"{where} holds keys that are not of a store of ours, such as {rows[0].key[:100]!r};"
            " choose another prefix"
        )
    missing_migrations(MIGRATIONS, SchemaVersion(), where, create=create)
    await _write_mark(client, keyspace, unmarked, where)


async def _write_mark(client: Client, keyspace: Keyspace, condition: etcd_pb2.Compare, where: str) -> None:
    newest = MIGRATIONS[-1]
    mark = {"application": _APPLICATION, "version": newest.version, "oldest": newest.oldest}
    put = etcd_pb2.PutRequest(key=keyspace.meta, value=json.dumps(mark).encode())
    make = etcd_pb2.TxnRequest(
        compare=[condition],
        success=[etcd_pb2.RequestOp(request_put=put)],
        failure=[_read(etcd_pb2.RangeRequest(key=keyspace.meta))],
    )
    answer = await client.ask(lambda connection: connection.txn, make)
    if not answer.succeeded:
        # Somebody was faster, or an attempt of our own got no answer.
        rows = answer.responses[0].response_range.kvs
        found = _read_mark(rows[0].value if rows else b"", where)
        missing_migrations(MIGRATIONS, found, where, create=False)


def _read(request: etcd_pb2.RangeRequest) -> etcd_pb2.RequestOp:
    return etcd_pb2.RequestOp(request_range=request)


def _read_mark(mark: bytes, where: str) -> SchemaVersion:
    try:
        fields = json.loads(mark)
        ours = fields["application"] == _APPLICATION
        found = SchemaVersion(int(fields["version"]), int(fields["oldest"]))
    except (ValueError, TypeError, KeyError) as error:
        raise StoreCorruptError(f"{where} holds a mark that is not one of ours: {mark[:100]!r}") from error
    if not ours or found.version < 1:
        raise StoreCorruptError(f"{where} holds a mark that is not one of ours: {mark[:100]!r}")
    return found
