"""An aggregate for tests: an account that is opened, paid into and drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import attrs

from hsm.aggregate import Advancer, Command, Event, FunctionAdvancer, NamedEvents, State
from persistence.proto.nogevents_pb2 import Event as Message


@attrs.frozen
class Opened:
    owner: str


@attrs.frozen
class Deposited:
    amount: int
    currency: str = "EUR"
    request_id: str = ""


@attrs.frozen
class Withdrawn:
    amount: int


Fact = Opened | Deposited | Withdrawn


@attrs.frozen
class Open(Command):
    owner: str


@attrs.frozen
class Deposit(Command):
    amounts: tuple[int, ...]
    request_id: str = ""


@attrs.frozen
class Withdraw(Command):
    amount: int


@attrs.frozen
class Close(Command):
    """Asks for leave to delete."""


@attrs.frozen
class CloseBadly(Command):
    """Comes to facts, though it asks for leave to delete."""


AccountCommand = Open | Deposit | Withdraw | Close | CloseBadly


@attrs.frozen
class Account(State):
    owner: str = ""
    balance: int = 0
    deposits: tuple[int, ...] = ()
    requests: frozenset[str] = frozenset()


class OverdrawnError(Exception):
    """There is not that much."""


def account_events() -> NamedEvents[Fact]:
    events = NamedEvents[Fact]()
    events.register("opened", Opened)
    events.register("deposited", Deposited, version=1, upcasters={0: lambda old: {"amount": old["sum"]}})
    events.register("withdrawn", Withdrawn)
    return events


EVENTS: Final = account_events()


def advanced(account: Account, event: Event[Fact]) -> Account:
    match event.data:
        case Opened(owner):
            return attrs.evolve(account, owner=owner)
        case Deposited(amount, _, request_id):
            return attrs.evolve(
                account,
                balance=account.balance + amount,
                deposits=(*account.deposits, amount),
                requests=account.requests | {request_id} - {""},
            )
        case Withdrawn(amount):
            return attrs.evolve(account, balance=account.balance - amount)


class Accounts:
    """The behavior."""

    def new_event(self, message: Message, /) -> Fact:
        return EVENTS.decode(message)

    def new_message(self, fact: Fact, /) -> Message:
        return EVENTS.encode(fact)

    def new_state(self, id_: UUID, /) -> Account:
        return Account(id_)

    def new_advancer(self) -> Advancer[Account, Fact]:
        return FunctionAdvancer(advanced)

    def is_repeat(self, state: Account, command: AccountCommand, /) -> bool:
        return isinstance(command, Deposit) and command.request_id in state.requests

    def tell(self, state: Account, command: AccountCommand, /) -> Sequence[Fact]:
        match command:
            case Open(owner):
                return () if state.owner == owner else (Opened(owner),)
            case Deposit(amounts, request_id):
                return [Deposited(amount, request_id=request_id) for amount in amounts]
            case Withdraw(amount):
                if amount > state.balance:
                    raise OverdrawnError(f"{amount} of {state.balance}")
                return (Withdrawn(amount),)
            case Close():
                if state.balance:
                    raise OverdrawnError("not empty")
                return ()
            case CloseBadly():
                return (Withdrawn(0),)
