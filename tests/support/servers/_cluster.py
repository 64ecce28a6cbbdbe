"""A cluster of Valkey: three masters on loopback that share the slots."""

from __future__ import annotations

from typing import Final

from tests.support.servers._process import MissingServerError, await_that, free_port
from tests.support.servers._redis import RedisServer, find_redis, find_valkey
from tests.support.servers._server import Options, Server, random_name

_SLOTS: Final = 16384
_NODES: Final = 3
# After a start a node waits so long, but five seconds at most, before it says that all is well.
_NODE_TIMEOUT_MILLISECONDS: Final = 2000


class ClusterNode(RedisServer):
    """A master with a third of the slots."""

    bus_port = 0

    def choose_ports(self) -> None:
        super().choose_ports()
        self.bus_port = free_port()

    def command(self) -> list[str]:
        settings = {
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-node-timeout": str(_NODE_TIMEOUT_MILLISECONDS),
        }
        if self.certificate is not None:
            settings["tls-cluster"] = "yes"
        return super().command() + [part for name, value in settings.items() for part in (f"--{name}", value)]

    def well(self) -> bool:
        """Whether it knows all the others, and nothing stands against its service."""
        try:
            (answer,) = self.call(["CLUSTER", "INFO"])
        except OSError:
            return False
        assert isinstance(answer, bytes)
        lines = answer.decode().split()
        return {"cluster_state:ok", f"cluster_known_nodes:{_NODES}", f"cluster_slots_ok:{_SLOTS}"} <= set(
            lines
        )


class ValkeyCluster(Server):
    """All of the nodes; each can also be killed and started alone."""

    name = "valkey-cluster"

    def __init__(self, options: Options) -> None:
        try:
            program = find_valkey(tls=options.tls)
        except MissingServerError:
            if not options.tls:
                raise
            program = find_redis()
        self.nodes = [ClusterNode(f"{self.name}/{number}", program, options) for number in range(_NODES)]
        for node in self.nodes:
            node.certificate, node.ca_file = self.nodes[0].certificate, self.nodes[0].ca_file
        self.ca_file = self.nodes[0].ca_file
        self.port = 0

    @property
    def url(self) -> str:
        return self._url("hsm")

    def fresh_url(self) -> str:
        return self._url(random_name())

    def _url(self, prefix: str) -> str:
        first = self.nodes[0]
        scheme = "rediss" if self.ca_file else "redis"
        return f"{scheme}+cluster://{first.address}?{first.options_of_url(prefix)}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        if not self.port:
            self.port = self.nodes[0].port
            self._join()
        await_that(lambda: all(node.well() for node in self.nodes), f"{self.name} is not well")

    def _join(self) -> None:
        bounds = [number * _SLOTS // _NODES for number in range(_NODES + 1)]
        for number, node in enumerate(self.nodes):
            first, last = bounds[number], bounds[number + 1] - 1
            node.call(
                ["CLUSTER", "SET-CONFIG-EPOCH", str(number + 1)],
                ["CLUSTER", "ADDSLOTSRANGE", str(first), str(last)],
            )
        first_node, *others = self.nodes
        for node in others:
            first_node.call(["CLUSTER", "MEET", "127.0.0.1", str(node.port), str(node.bus_port)])

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def pause(self) -> None:
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        for node in self.nodes:
            node.resume()

    def destroy(self) -> None:
        for node in self.nodes:
            node.destroy()
