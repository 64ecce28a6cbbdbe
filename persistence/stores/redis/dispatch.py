"""Commands to the nodes that have their slots, after slots that move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError

from persistence.errors import PersistenceError, StoreUnavailableError
from persistence.stores.redis.failures import is_moving
from persistence.stores.redis.links import Command, Link, LinkLostError, Reply
from persistence.stores.redis.nodes import Nodes
from persistence.stores.redis.settings import Address

__all__ = ["Outcome", "Request", "Send", "carry", "dispatch"]

_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.2


class Request:
    """A command of one slot.

    Attributes:
        follow: whether it may go to the node that a slot is moving to, which has only some of its keys yet;
            right for commands that declare all their keys.
        asking: that node, once a node has named it.
    """

    __slots__ = ("asking", "command", "follow", "slot")

    def __init__(self, slot: int, command: Command, *, follow: bool = True) -> None:
        self.slot: int = slot
        self.command: Command = command
        self.follow: bool = follow
        self.asking: Address | None = None


Outcome: TypeAlias = "Reply | PersistenceError"
"""The answer to a request, or why there is none."""

Send: TypeAlias = Callable[[Address, Sequence[Request]], Awaitable[Sequence[Outcome]]]
"""Sends requests to a node, and answers with an outcome for each."""


async def dispatch(nodes: Nodes, requests: Sequence[Request], send: Send, seconds: float) -> list[Outcome]:
    """Carry requests out wherever their slots are, trying for so long where slots are just moving."""
    outcomes: list[Outcome] = [None] * len(requests)
    waiting = list(range(len(requests)))
    deadline = asyncio.get_running_loop().time() + seconds
    pause = _PAUSE_SECONDS
    first = True
    while True:
        await _send_all(nodes, requests, waiting, outcomes, send)
        moved = [
            index for index in waiting if isinstance(outcomes[index], RedisError | StoreUnavailableError)
        ]
        again = [index for index in moved if _redirect(nodes, requests[index], outcomes[index])]
        unmapped = [index for index in moved if index not in again and _lost_its_node(outcomes[index])]
        if unmapped:
            before = {index: _owner(nodes, requests[index]) for index in unmapped}
            # If nobody answers, what the node itself has said tells more.
            with suppress(StoreUnavailableError):
                await nodes.refresh()
            again += [index for index in unmapped if _owner(nodes, requests[index]) != before[index]]
        if not again or asyncio.get_running_loop().time() >= deadline:
            return outcomes
        # A redirection is followed at once; what stands in the way of one takes its time.
        if not first or any(_takes_time(requests[index], outcomes[index]) for index in again):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        first = False
        waiting = again


async def _send_all(
    nodes: Nodes, requests: Sequence[Request], waiting: Sequence[int], outcomes: list[Outcome], send: Send
) -> None:
    by_address: dict[Address, list[int]] = {}
    for index in waiting:
        request = requests[index]
        try:
            address = request.asking or nodes.address(request.slot)
        except StoreUnavailableError as error:
            outcomes[index] = error
        else:
            by_address.setdefault(address, []).append(index)

    async def one(address: Address, indexes: Sequence[int]) -> None:
        answers = await send(address, [requests[index] for index in indexes])
        for index, outcome in zip(indexes, answers, strict=True):
            outcomes[index] = outcome
            requests[index].asking = None

    if len(by_address) == 1:
        for address, indexes in by_address.items():
            await one(address, indexes)
        return
    async with asyncio.TaskGroup() as group:
        for address, indexes in by_address.items():
            group.create_task(one(address, indexes))


async def carry(link: Link, requests: Sequence[Request]) -> list[Reply]:
    """Send requests over a connection to the node that has their slots, or is about to.

    Raises:
        LinkLostError: the connection broke; tells which answers came.
    """
    if not any(request.asking for request in requests):
        return await link.call([request.command for request in requests])
    commands: list[Command] = []
    for request in requests:
        if request.asking:
            commands.append((b"ASKING",))
        commands.append(request.command)
    try:
        return _without_permissions(requests, await link.call(commands))
    except LinkLostError as lost:
        lost.replies = _without_permissions(requests, lost.replies)
        raise


def _without_permissions(requests: Sequence[Request], replies: Sequence[Reply]) -> list[Reply]:
    """The answers to the requests themselves, as far as there are any."""
    kept: list[Reply] = []
    at = 0
    for request in requests:
        at += 1 if request.asking else 0
        if at >= len(replies):
            break
        kept.append(replies[at])
        at += 1
    return kept


def _redirect(nodes: Nodes, request: Request, outcome: Outcome) -> bool:
    """Whether a request has to be sent again, and where; what was redirected did not take place."""
    if isinstance(outcome, MovedError):
        nodes.moved(request.slot, _named(nodes, request, outcome))
        return True
    if isinstance(outcome, AskError):
        if request.follow:
            request.asking = _named(nodes, request, outcome)
        return True
    return is_moving(outcome)


def _takes_time(request: Request, outcome: Outcome) -> bool:
    return is_moving(outcome) or (isinstance(outcome, AskError) and request.asking is None)


def _named(nodes: Nodes, request: Request, error: AskError) -> Address:
    """The address in a redirection; without a host it is the host of the node that said so."""
    host, _, port = str(error).rpartition(" ")[2].rpartition(":")
    return (host or nodes.address(request.slot)[0], int(port))


def _lost_its_node(outcome: Outcome) -> bool:
    return isinstance(outcome, ClusterDownError | StoreUnavailableError)


def _owner(nodes: Nodes, request: Request) -> Address | None:
    try:
        return nodes.address(request.slot)
    except StoreUnavailableError:
        return None
