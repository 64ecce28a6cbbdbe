"""An aggregate whose state is rebuilt from its events: an account that is paid into."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

import attrs

from hsm.aggregate import Advancer, Command, Engine, Event, FunctionAdvancer, NamedEvents, State
from persistence import connect
from persistence.journal import NO_VC, Journal
from persistence.proto.nogevents_pb2 import Event as Message

__all__ = ["events_rebuilt_a_second"]

_BATCH: Final = 1000


@attrs.frozen
class _Deposited:
    amount: int


@attrs.frozen
class _Deposit(Command):
    amounts: Sequence[int]


@attrs.frozen
class _Account(State):
    balance: int = 0


_EVENTS: Final = NamedEvents[_Deposited]()
_EVENTS.register("deposited", _Deposited)


def _advanced(account: _Account, event: Event[_Deposited]) -> _Account:
    return _Account(account.id, account.vid, account.balance + event.data.amount)


class _Accounts:
    def new_state(self, id_: UUID, /) -> _Account:
        return _Account(id_)

    def new_advancer(self) -> Advancer[_Account, _Deposited]:
        return FunctionAdvancer(_advanced)

    def new_event(self, message: Message, /) -> _Deposited:
        return _EVENTS.decode(message)

    def new_message(self, fact: _Deposited, /) -> Message:
        return _EVENTS.encode(fact)

    def tell(self, account: _Account, command: _Deposit, /) -> Sequence[_Deposited]:
        return [_Deposited(amount) for amount in command.amounts]


def events_rebuilt_a_second(url: str, events: int, rounds: int) -> float:
    """Rebuild the state that so many events come to, again and again, without a snapshot or a cache."""
    return asyncio.run(_events_rebuilt_a_second(url, events, rounds))


async def _events_rebuilt_a_second(url: str, events: int, rounds: int) -> float:
    id_ = uuid4()
    async with connect(url) as store, Journal(store, "benchmark") as journal:
        engine = Engine(journal, _Accounts())
        for first in range(0, events, _BATCH):
            await engine.tell_id_vid(id_, NO_VC, _Deposit([1] * min(_BATCH, events - first)))
        start = time.perf_counter()
        for _ in range(rounds):
            account = await Engine(journal, _Accounts()).find_id(id_)
            assert account.balance == events
        return rounds * events / (time.perf_counter() - start)
