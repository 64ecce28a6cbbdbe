"""Peer: etcd by grpc.aio, one Txn for each multi.

One channel, as gRPC has its calls share a connection, and as many calls at once as there are multis: with a
bound of twenty the peer is slower by a third. A Txn compares the revisions at which both rows were
last written and puts two rows; the revision that its answer names is the etag of both.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs, urlsplit

import grpc.aio

from persistence.proto.etcd_pb2 import Compare, PutRequest, RequestOp, TxnRequest, TxnResponse
from tests.benchmarks.peers.rows import VALUE, Rows, multis_a_second

__all__ = ["multis"]


def multis(url: str, concurrency: int, seconds: float) -> float:
    """Multis a second, below the URL's prefix of keys."""
    return asyncio.run(_multis(url, concurrency, seconds))


async def _multis(url: str, concurrency: int, seconds: float) -> float:
    parts = urlsplit(url)
    prefix = parse_qs(parts.query)["prefix"][0]
    async with grpc.aio.insecure_channel(f"{parts.hostname}:{parts.port}") as channel:
        return await multis_a_second(_CalledRows(channel, prefix), concurrency, seconds)


class _CalledRows(Rows[int]):
    def __init__(self, channel: grpc.aio.Channel, prefix: str) -> None:
        self._txn: grpc.aio.UnaryUnaryMultiCallable[TxnRequest, TxnResponse] = channel.unary_unary(
            "/etcdserverpb.KV/Txn",
            request_serializer=TxnRequest.SerializeToString,
            response_deserializer=TxnResponse.FromString,
        )
        self._prefix = prefix

    async def put(self, partition: str, key: str) -> int:
        return await self._commit(partition, TxnRequest(success=[self._put(partition, key)]))

    async def multi(self, partition: str, fence: int, node: str, etag: int, task: str) -> int:
        request = TxnRequest(
            compare=[self._unchanged(partition, "fence", fence), self._unchanged(partition, node, etag)],
            success=[self._put(partition, node), self._put(partition, task)],
        )
        return await self._commit(partition, request)

    async def _commit(self, partition: str, request: TxnRequest) -> int:
        answer = await self._txn(request)
        if not answer.succeeded:
            raise RuntimeError(f"a condition does not hold in partition {partition!r}")
        return answer.header.revision

    def _unchanged(self, partition: str, key: str, revision: int) -> Compare:
        return Compare(target=Compare.MOD, key=self._key(partition, key), mod_revision=revision)

    def _put(self, partition: str, key: str) -> RequestOp:
        return RequestOp(request_put=PutRequest(key=self._key(partition, key), value=VALUE))

    def _key(self, partition: str, key: str) -> bytes:
        return f"{self._prefix}{partition}/{key}".encode()
