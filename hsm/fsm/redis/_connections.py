"""Connections: whatever waits for a node goes to it in one pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import attrs
from redis.exceptions import MovedError, RedisError

from hsm.fsm.redis._scripts import SCRIPTS
from persistence.errors import PersistenceError, StoreClosedError, StoreCorruptError
from persistence.stores.redis.dispatch import Outcome, Request, carry, dispatch
from persistence.stores.redis.failures import translate
from persistence.stores.redis.links import Dialer, Link, LinkLostError, Reply
from persistence.stores.redis.nodes import ClusterNodes, Nodes, OneNode
from persistence.stores.redis.settings import Address, RedisOptions, Target

__all__ = ["Connections"]

# Two, so that one is under way while the answers of the other are read.
_LINKS: Final = 2
_PIPELINE_REQUESTS: Final = 200
_FOR_EVER_SECONDS: Final = 1e9


@attrs.define
class _Group:
    """Requests that somebody waits for together."""

    requests: Sequence[Request]
    outcomes: asyncio.Future[Sequence[Outcome]]


class _Node:
    """The connections to one node, made when they are needed."""

    def __init__(self, dialer: Dialer, address: Address) -> None:
        self._dialer = dialer
        self._address = address
        self._waiting: list[_Group] = []
        self._idle: list[Link] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._starting = False

    async def send(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """Send requests together with those of others; an outcome for each."""
        group = _Group(requests, asyncio.get_running_loop().create_future())
        self._waiting.append(group)
        self._start()
        return await group.outcomes

    def _start(self) -> None:
        if self._starting or len(self._workers) >= _LINKS:
            return
        # What else is sent before the worker's turn comes goes with it.
        self._starting = True
        worker = asyncio.create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if self._waiting and not worker.cancelled():
            self._start()

    async def _work(self) -> None:
        self._starting = False
        while groups := self._take():
            requests = [request for group in groups for request in group.requests]
            try:
                outcomes = await self._exchange(requests)
            except BaseException:
                _refuse(groups)
                raise
            at = 0
            for group in groups:
                end = at + len(group.requests)
                if not group.outcomes.done():  # nobody waits any more for those that are
                    group.outcomes.set_result(outcomes[at:end])
                at = end

    def _take(self) -> list[_Group]:
        """Groups for one pipeline; without those that nobody waits for any more."""
        taken: list[_Group] = []
        count = 0
        for group in self._waiting:
            if taken and count + len(group.requests) > _PIPELINE_REQUESTS:
                break
            taken.append(group)
            count += len(group.requests)
        del self._waiting[: len(taken)]
        return [group for group in taken if not group.outcomes.done()] or (
            self._take() if self._waiting else []
        )

    async def _exchange(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        where = self._dialer.where(self._address)
        link: Link | None = None
        try:
            link = await self._link()
            replies = await carry(link, requests)
        except LinkLostError as lost:
            error = translate(lost, where)
            error.__cause__ = lost
            return [*lost.replies, *[error] * (len(requests) - len(lost.replies))]
        except PersistenceError as failure:
            return [failure] * len(requests)
        finally:
            if link is not None:
                await self._give_back(link)
        return replies

    async def _link(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if link.connected:
                link.request_seconds = self._dialer.request_seconds
                return link
            await link.abort()
        return await self._dialer.dial(self._address)

    async def _give_back(self, link: Link) -> None:
        if link.connected:
            self._idle.append(link)
        else:
            await link.abort()

    async def aclose(self) -> None:
        """Close the connections; whoever still waits is told so."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        _refuse(self._waiting)
        self._waiting.clear()
        while self._idle:
            await self._idle.pop().aclose()


def _refuse(groups: Sequence[_Group]) -> None:
    for group in groups:
        if not group.outcomes.done():
            group.outcomes.set_result(_closed_meanwhile(group.requests))


def _closed_meanwhile(requests: Sequence[Request]) -> Sequence[Outcome]:
    return [StoreClosedError("the store was closed meanwhile")] * len(requests)


class Connections:
    """Carries commands out on whichever node has their keys, each time within the time-out."""

    def __init__(self, target: Target, seeds: Sequence[Address], options: RedisOptions) -> None:
        self._dialer = Dialer(target, options, SCRIPTS)
        self._nodes: Nodes = ClusterNodes(self._dialer, seeds) if target.cluster else OneNode(seeds[0])
        self._only = None if target.cluster else seeds[0]
        self._mapped = not target.cluster
        self._connections: dict[Address, _Node] = {}
        self._closed = False
        self.where: str = ",".join(self._dialer.where(address) for address in seeds)

    def set_timeout(self, timeout: timedelta) -> None:
        """How long a command may take; zero: as long as it likes."""
        seconds = timeout.total_seconds() or _FOR_EVER_SECONDS
        self._dialer.request_seconds = seconds
        self._dialer.connect_seconds = seconds

    async def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Carry commands out, once; those of one node in one pipeline.

        Raises:
            TimeoutError: there was no answer in time.
            StoreUnavailableError: the server does not answer, or refuses for now.
            PersistenceError: the server's answer makes another attempt useless.
        """
        async with asyncio.timeout(self._dialer.request_seconds):
            await self._map()
            if self._only is not None:
                outcomes = await self._send(self._only, requests)
            else:
                seconds = self._dialer.request_seconds
                outcomes = await dispatch(self._nodes, requests, self._send, seconds)
        return [self._reply(outcome) for outcome in outcomes]

    async def ask_all(self, command: Sequence[bytes]) -> list[tuple[Address, Reply]]:
        """The answers of all nodes that have slots to a command.

        Raises:
            As `ask`.
        """
        async with asyncio.timeout(self._dialer.request_seconds):
            await self._map()
            return [(address, await self._ask_node(address, command)) for address in self._nodes.masters()]

    async def ask_node(self, address: Address, command: Sequence[bytes]) -> Reply:
        """The answer of a node to a command.

        Raises:
            As `ask`.
        """
        async with asyncio.timeout(self._dialer.request_seconds):
            return await self._ask_node(address, command)

    async def _ask_node(self, address: Address, command: Sequence[bytes]) -> Reply:
        (outcome,) = await self._send(address, [Request(0, command)])
        return self._reply(outcome)

    def _reply(self, outcome: Outcome) -> Reply:
        if isinstance(outcome, PersistenceError):
            raise outcome
        if isinstance(outcome, MovedError) and self._only is not None:
            raise StoreCorruptError(
                f"{self.where} is a node of a cluster: make the store with is_cluster=True"
            )
        if isinstance(outcome, RedisError):
            raise translate(outcome, self.where) from outcome
        return outcome

    async def _map(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")
        if not self._mapped:
            await self._nodes.refresh()
            self._mapped = True

    async def _send(self, address: Address, requests: Sequence[Request]) -> Sequence[Outcome]:
        if self._closed:  # since the first attempt
            return _closed_meanwhile(requests)
        node = self._connections.get(address)
        if node is None:
            node = self._connections[address] = _Node(self._dialer, address)
        return await node.send(requests)

    async def aclose(self) -> None:
        """Close all connections."""
        self._closed = True
        while self._connections:
            _, node = self._connections.popitem()
            await node.aclose()
