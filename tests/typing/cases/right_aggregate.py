"""Client code of aggregates that both checkers accept as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_type
from uuid import UUID

import attrs

from hsm.aggregate import Advancer, Command, Engine, FunctionAdvancer, NamedEvents, State
from hsm.components import ping_registry
from persistence.journal import EPOCH, NO_VC, RETRY_NO_VC, EventId, Journal
from persistence.proto.nogevents_pb2 import Event as EventMessage


@attrs.frozen
class Deposited:
    amount: int


@attrs.frozen
class Deposit(Command):
    amount: int


@attrs.frozen
class Account(State):
    balance: int = 0


facts = NamedEvents[Deposited]()
facts.register("deposited", Deposited, version=1, upcasters={0: lambda old: {"amount": old["sum"]}})


class Accounts:
    def new_event(self, message: EventMessage, /) -> Deposited:
        return facts.decode(message)

    def new_message(self, fact: Deposited, /) -> EventMessage:
        return facts.encode(fact)

    def new_state(self, id_: UUID, /) -> Account:
        return Account(id_)

    def new_advancer(self) -> Advancer[Account, Deposited]:
        return FunctionAdvancer(lambda account, event: Account(account.id, balance=event.data.amount))

    def tell(self, state: Account, command: Deposit, /) -> Sequence[Deposited]:
        return (Deposited(command.amount),)


async def tell(journal: Journal, id_: UUID) -> None:
    engine = Engine(journal, Accounts())
    assert_type(engine, Engine[Account, Deposit, Deposited])
    assert_type(await engine.find_id(id_), Account)
    assert_type(await engine.tell_id_vid(id_, NO_VC, Deposit(1)), EventId)
    assert_type(await engine.tell_id_vid_state(id_, EPOCH, Deposit(1)), Account)
    assert_type(await engine.tell_state(Account(id_), Deposit(1)), Account)
    await engine.delete_id_vid(id_, RETRY_NO_VC, Deposit(0))
    coordinator = ping_registry.Coordinator(journal, "registry")
    assert_type(await coordinator.begin(), ping_registry.Begun)
    assert_type((await coordinator.workflows.find(id_)).pings, tuple[ping_registry.Ping, ...])
