"""A lane: it carries out batches, and finds out what became of one that broke off.

Every call that writes leaves its id and its outcomes in the partition's log. After a broken connection the
lane first has the server end the old one, so that nothing sent there can still take effect, and then reads
the logs: a call that is there took place, with the outcomes that stand there; one that is not never will.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import attrs
from redis.exceptions import ReadOnlyError, RedisError

from persistence.batcher import Result
from persistence.decision import Transaction, new_etags
from persistence.errors import (
    CommitOutcomeUnknownError,
    PersistenceError,
    StoreUnavailableError,
)
from persistence.stores.redis.calls import Call, calls_of
from persistence.stores.redis.dispatch import Outcome, Request, carry, dispatch
from persistence.stores.redis.failures import surely_not_written, translate
from persistence.stores.redis.layout import ETAG_BYTES, Layout
from persistence.stores.redis.links import Command, Dialer, Link, LinkLostError
from persistence.stores.redis.nodes import Nodes
from persistence.stores.redis.schema import refuse_eviction
from persistence.stores.redis.settings import Address

__all__ = ["Lane", "LaneOptions"]

_ATTEMPTS: Final = 3
_PAUSE_SECONDS: Final = 0.02
# Logs live ten minutes. Somebody who was stopped for longer must not take a log that is gone for news.
_TRUSTED_SECONDS: Final = 300


@attrs.frozen
class LaneOptions:
    """How lanes write.

    Attributes:
        publish: the command by which changes are told, or nothing.
        wait_milliseconds: how long to wait for replicas where a write asks for them.
        keeps_logs: the server does not throw logs away.
        reconnected: is told of a node to which a connection had to be replaced.
    """

    publish: bytes
    wait_milliseconds: int
    keeps_logs: bool
    reconnected: Callable[[Address], Awaitable[None]]


class _Moment:
    """When something was done, by two clocks: one can be set back, the other sleeps with the machine."""

    def __init__(self) -> None:
        self._clocks = (time.time(), time.monotonic())

    @property
    def age_seconds(self) -> float:
        """How long ago it was, by the clock that has gone further."""
        return max(time.time() - self._clocks[0], time.monotonic() - self._clocks[1])


class Lane:
    """Carries out batches, one at a time."""

    def __init__(self, name: str, nodes: Nodes, dialer: Dialer, layout: Layout, options: LaneOptions) -> None:
        self._name = name
        self._nodes = nodes
        self._dialer = dialer
        self._layout = layout
        self._options = options
        self._links: dict[Address, Link] = {}
        # Whoever asks what became of a call may ask a node to which other calls are just being sent.
        self._turns: defaultdict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._clients: dict[Address, Command] = {}  # that ends the connection now or last used
        self._fenced: set[Address] = set()

    async def commit(self, batch: Sequence[Transaction]) -> Sequence[Result]:
        """Carry out a batch; each transaction has a result of its own."""
        calls = calls_of(batch, new_etags(len(batch)), self._layout, self._name, self._options.publish)
        by_request = {id(call.request): call for call in calls}

        async def send(address: Address, requests: Sequence[Request]) -> Sequence[Outcome]:
            return await self._send(address, [by_request[id(request)] for request in requests])

        outcomes = await dispatch(
            self._nodes, [call.request for call in calls], send, self._dialer.request_seconds
        )
        results: list[Result] = [""] * len(batch)
        for call, outcome in zip(calls, outcomes, strict=True):
            for index, result in zip(call.members, self._results(call, outcome), strict=True):
                results[index] = result
        return results

    async def aclose(self) -> None:
        """Close the connections."""
        for link in self._links.values():
            await link.aclose()

    def _results(self, call: Call, outcome: Outcome) -> Sequence[Result]:
        where = self._where(call)
        if outcome == 0:
            return call.results(b"", where)
        if isinstance(outcome, bytes):
            return call.results(outcome, where)
        if isinstance(outcome, PersistenceError):
            error = outcome
        elif isinstance(outcome, RedisError):
            error = translate(outcome, where)
            if not surely_not_written(outcome):
                error = CommitOutcomeUnknownError(f"a commit to Redis at {where} ended with: {outcome}")
            error.__cause__ = outcome
        else:
            error = CommitOutcomeUnknownError(f"Redis at {where} answered to a commit with {outcome!r}")
        return [error] * len(call.members)

    def _where(self, call: Call) -> str:
        try:
            return self._dialer.where(self._nodes.address(call.request.slot))
        except StoreUnavailableError:
            return "no node"

    async def _send(self, address: Address, calls: Sequence[Call]) -> Sequence[Outcome]:
        """Make calls of a node, again where a connection broke before they took place."""
        outcomes: dict[int, Outcome] = {}
        left = list(calls)
        for _ in range(_ATTEMPTS):
            sent = _Moment()
            try:
                outcomes |= await self._make(address, left)
                break
            except PersistenceError as error:
                outcomes |= {id(call): error for call in left}
                break
            except LinkLostError as lost:
                answered = list(zip(left, lost.replies, strict=False))
                outcomes |= {id(call): reply for call, reply in answered}
                left = left[len(answered) :]
                known = await self._find_out(address, left, lost, sent)
                outcomes |= known
                left = [call for call in left if id(call) not in known]
                if not left:
                    break
                failure = translate(lost, self._dialer.where(address))
                failure.__cause__ = lost
                outcomes |= {id(call): failure for call in left}
        return [outcomes[id(call)] for call in calls]

    async def _make(self, address: Address, calls: Sequence[Call]) -> Mapping[int, Outcome]:
        """Make calls of a node, once.

        Raises:
            StoreUnavailableError: there is no connection, and nothing was sent.
            LinkLostError: it broke; tells which answers came.
        """
        async with self._turns[address]:
            link = await self._link(address)
            replies = await carry(link, [call.request for call in calls])
            outcomes: dict[int, Outcome] = {
                id(call): reply for call, reply in zip(calls, replies, strict=True)
            }
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                # A master no more; behind the same name there may be another one by now.
                await link.abort()
            else:
                await self._await_replicas(link, calls, outcomes)
            return outcomes

    async def _link(self, address: Address) -> Link:
        """The connection to a node; a new one has ended the one before it.

        Raises:
            StoreUnavailableError: there is none to be had, or the server throws rows away.
        """
        lost = self._links.get(address)
        if lost is not None and lost.connected:
            return lost
        if lost is not None:
            await lost.abort()
        questions: list[Command] = [(b"CLIENT", b"INFO"), (b"INFO", b"memory")]
        previous = self._clients.get(address)
        if previous is not None:
            questions.append(previous)
        link, (client, memory, *ended) = await self._dialer.dial_and_ask(address, questions)
        try:
            # A node that has joined or taken over since the store was opened may be set up in another way.
            if self._options.keeps_logs and isinstance(memory, bytes):
                refuse_eviction(memory, self._dialer.where(address))
        except StoreUnavailableError:
            await link.abort()
            raise
        self._links[address] = link
        self._fenced.discard(address)
        if previous is not None and isinstance(ended[0], int):
            self._fenced.add(address)
        self._clients.pop(address, None)
        if isinstance(client, bytes):
            fields = dict(field.split(b"=", 1) for field in client.split() if b"=" in field)
            # By address, too: a server that was restarted gives the same numbers to others.
            if b"id" in fields and b"addr" in fields:
                kill = (b"CLIENT", b"KILL", b"ID", fields[b"id"], b"ADDR", fields[b"addr"])
                self._clients[address] = kill
        if lost is not None:
            await self._options.reconnected(address)
        return link

    async def _find_out(
        self, address: Address, calls: Sequence[Call], lost: LinkLostError, sent: _Moment
    ) -> dict[int, Outcome]:
        """What became of calls whose answers are missing; those that never took place are left out."""
        where = self._dialer.where(address)
        unknown = CommitOutcomeUnknownError(
            f"the connection to Redis at {where} broke during a commit: {lost}"
        )
        unknown.__cause__ = lost
        if lost.timed_out:
            # It hangs, and whoever waits has waited long enough.
            return {id(call): unknown for call in calls}
        deadline = asyncio.get_running_loop().time() + self._dialer.connect_seconds
        pause = _PAUSE_SECONDS
        known: dict[int, Outcome] = {}
        left = list(calls)
        while left and asyncio.get_running_loop().time() < deadline:
            requests = [Request(call.request.slot, (b"GETRANGE", call.log, b"0", b"-1")) for call in left]
            outcomes = await dispatch(self._nodes, requests, self._ask, self._dialer.connect_seconds)
            undecided: list[Call] = []
            for call, outcome in zip(left, outcomes, strict=True):
                if not isinstance(outcome, bytes):
                    undecided.append(call)
                elif outcome.startswith(call.id.encode()):
                    known[id(call)] = outcome[ETAG_BYTES:] or 0
                elif not self._ended(address, call) or not 0 <= sent.age_seconds < _TRUSTED_SECONDS:
                    known[id(call)] = unknown
            left = undecided
            if left:
                await asyncio.sleep(pause)
                pause *= 2
        return known | {id(call): unknown for call in left}

    def _ended(self, address: Address, call: Call) -> bool:
        """Whether a call that is not in the log can have no effect any more."""
        if not self._options.keeps_logs:
            return False
        try:
            # On a node that has lost the slot nothing has effect any more.
            return address in self._fenced or self._nodes.address(call.request.slot) != address
        except StoreUnavailableError:
            return False

    async def _ask(self, address: Address, requests: Sequence[Request]) -> Sequence[Outcome]:
        try:
            async with self._turns[address]:
                return await carry(await self._link(address), requests)
        except LinkLostError as lost:
            error: PersistenceError = translate(lost, self._dialer.where(address))
        except StoreUnavailableError as failure:
            error = failure
        return [error] * len(requests)

    async def _await_replicas(
        self, link: Link, calls: Sequence[Call], outcomes: Mapping[int, Outcome]
    ) -> None:
        """Wait until the replicas have what was just written, where that was asked for."""
        strong = [call for call in calls if call.strong and isinstance(outcomes[id(call)], int | bytes)]
        if not strong:
            return
        where = self._dialer.where(link.address)
        try:
            replicas, reached = await self._reach_replicas(link)
        except LinkLostError as lost:
            text = f"written, but the connection to Redis at {where} broke before the replicas had it: {lost}"
        else:
            if reached >= replicas:
                return
            text = f"written to Redis at {where}, but only {reached} of {replicas} replicas have it so far"
        for call in strong:
            call.unreplicated = text

    async def _reach_replicas(self, link: Link) -> tuple[int, int]:
        """How many replicas there are, and how many have everything."""
        (info,) = await link.exchange([(b"INFO", b"replication")])
        replicas = 0
        if isinstance(info, bytes):
            for line in info.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name == b"connected_slaves":
                    replicas = int(value)
        if not replicas:
            return 0, 0
        milliseconds = b"%d" % self._options.wait_milliseconds
        (reached,) = await link.exchange([(b"WAIT", b"%d" % replicas, milliseconds)])
        return replicas, reached if isinstance(reached, int) else 0
