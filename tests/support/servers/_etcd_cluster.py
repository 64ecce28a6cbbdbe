"""A cluster of etcd: three members on loopback, each of which can be killed and started alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from tests.support.servers._etcd import EtcdServer
from tests.support.servers._process import free_port
from tests.support.servers._server import Options

__all__ = ["EtcdMember", "etcd_cluster", "together"]

_MEMBERS: Final = 3


class EtcdMember(EtcdServer):
    """One of the members; ready when most of them are."""

    def __init__(self, number: int, members: list[EtcdMember]) -> None:
        super().__init__(Options(own=True))
        self.member = f"member{number}"
        self._members = members
        self.port, self.peer_port = free_port(), free_port()

    def command(self) -> list[str]:
        peers = ",".join(f"{member.member}={member.peers}" for member in self._members)
        command = [
            part
            for part in super().command()
            if not part.startswith(("--name", "--listen-peer", "--initial-"))
        ]
        command += [f"--name={self.member}", f"--initial-cluster={peers}"]
        command += [f"--listen-peer-urls={self.peers}", f"--initial-advertise-peer-urls={self.peers}"]
        return [*command, "--heartbeat-interval=50", "--election-timeout=500"]

    @property
    def peers(self) -> str:
        """Where the other members reach it."""
        return f"http://127.0.0.1:{self.peer_port}"


@contextmanager
def etcd_cluster() -> Iterator[list[EtcdMember]]:
    """The members of a cluster, for the time of a block."""
    members: list[EtcdMember] = []
    members += [EtcdMember(number, members) for number in range(_MEMBERS)]
    try:
        together(member.start for member in members)
        yield members
    finally:
        for member in members:
            member.destroy()


def together(actions: Iterable[Callable[[], None]]) -> None:
    """Do several things at the same time: a member waits for the others."""
    with ThreadPoolExecutor(_MEMBERS) as threads:
        for done in [threads.submit(action) for action in actions]:
            done.result()
