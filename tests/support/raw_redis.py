"""Redis as any other program sees it: commands over a connection of one's own, without the driver and without us."""

from __future__ import annotations

import attrs

from tests.support.servers import Server
from tests.support.servers._cluster import ValkeyCluster
from tests.support.servers._redis import RedisServer
from tests.support.servers._resp import ErrorReplyError, Reply, call

__all__ = ["RawRedis"]


@attrs.frozen
class RawRedis:
    """A database of a server, or a cluster.

    Attributes:
        server: where it is.
        database: its number; a cluster has number 0 alone.
    """

    server: Server
    database: int = 0

    @property
    def address(self) -> str:
        """`host:port`, of a cluster several with commas between."""
        ports = (
            [node.port for node in self.server.nodes]
            if isinstance(self.server, ValkeyCluster)
            else [self.server.port]
        )
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    @property
    def is_cluster(self) -> bool:
        return isinstance(self.server, ValkeyCluster)

    def execute(self, *words: str | bytes) -> Reply:
        """The answer to a command, in a cluster that of the node that has the key."""
        if not isinstance(self.server, ValkeyCluster):
            assert isinstance(self.server, RedisServer)
            return self.server.call(["SELECT", str(self.database)], words)[1]
        moved: ErrorReplyError | None = None
        for node in self.server.nodes:
            try:
                return call(node.port, words, ca_file=node.ca_file)[0]
            except ErrorReplyError as error:
                if not str(error).startswith("MOVED"):
                    raise
                moved = error
        raise AssertionError(f"no node has the key: {moved}")

    def execute_everywhere(self, *words: str | bytes) -> list[Reply]:
        """The answers of all nodes."""
        if isinstance(self.server, ValkeyCluster):
            return [call(node.port, words, ca_file=node.ca_file)[0] for node in self.server.nodes]
        return [self.execute(*words)]

    def get(self, key: str) -> bytes | None:
        found = self.execute("GET", key)
        assert found is None or isinstance(found, bytes)
        return found

    def put(self, key: str, value: bytes) -> None:
        assert self.execute("SET", key, value) == b"OK"

    def members(self, key: str) -> set[str]:
        found = self.execute("SMEMBERS", key)
        assert isinstance(found, list)
        return {member.decode() for member in found if isinstance(member, bytes)}

    def add(self, key: str, *members: str) -> None:
        self.execute("SADD", key, *members)

    def keys(self) -> set[str]:
        """All keys there are."""
        answers = self.execute_everywhere("KEYS", "*")
        return {
            key.decode()
            for answer in answers
            if isinstance(answer, list)
            for key in answer
            if isinstance(key, bytes)
        }

    def clear(self) -> None:
        """Remove everything."""
        self.execute_everywhere("FLUSHDB")
