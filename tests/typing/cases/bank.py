"""Two kinds of aggregates, for the cases of wrong client code."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import attrs

from hsm.aggregate import Advancer, Command, Engine, Event, FunctionAdvancer, NamedEvents, State
from persistence.journal import Journal
from persistence.proto.nogevents_pb2 import Event as Message


@attrs.frozen
class Deposited:
    amount: int


@attrs.frozen
class Deposit(Command):
    amount: int


@attrs.frozen
class Account(State):
    balance: int = 0


EVENTS = NamedEvents[Deposited]()
EVENTS.register("deposited", Deposited)


def advanced(account: Account, event: Event[Deposited]) -> Account:
    return attrs.evolve(account, balance=account.balance + event.data.amount)


class Accounts:
    def new_event(self, message: Message, /) -> Deposited:
        return EVENTS.decode(message)

    def new_message(self, fact: Deposited, /) -> Message:
        return EVENTS.encode(fact)

    def new_state(self, id_: UUID, /) -> Account:
        return Account(id_)

    def new_advancer(self) -> Advancer[Account, Deposited]:
        return FunctionAdvancer(advanced)

    def tell(self, state: Account, command: Deposit, /) -> Sequence[Deposited]:
        return (Deposited(command.amount),)


@attrs.frozen
class Rename(Command):
    name: str


@attrs.frozen
class Renamed:
    name: str


@attrs.frozen
class Person(State):
    name: str = ""


def engine_of(journal: Journal) -> Engine[Account, Deposit, Deposited]:
    return Engine(journal, Accounts())
