"""Marks: which executions another cluster has to be told of."""

from __future__ import annotations

from typing import Final

from hsm.engine.cluster import Cluster
from hsm.ref import ExecutionKey
from persistence.executions import replication_mark_key
from persistence.store import SetRequest

__all__ = ["marks"]

_VALUE: Final = b"1"  # nobody reads it: the key says all


def marks(partition: str, key: ExecutionKey, cluster: Cluster) -> list[SetRequest]:
    """What a commit writes so that all peers are told of it. One that is there already is written anew."""
    return [
        SetRequest(partition=partition, key=replication_mark_key(peer, *key), value=_VALUE)
        for peer in cluster.peers
    ]
