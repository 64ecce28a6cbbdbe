"""An aggregate meets a command, an event, a state or a version that is not its own."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from bank import EVENTS, Account, Accounts, Deposit, Deposited, Person, Rename, Renamed, advanced

from hsm.aggregate import Advancer, Engine, Event, FunctionAdvancer
from hsm.components.ping_registry import AppendPing, Behavior, State, Workflows
from persistence.journal import NO_VC, EventId, Journal
from persistence.proto.nogevents_pb2 import Event as Message


async def tell(engine: Engine[Account, Deposit, Deposited], id_: UUID, person: Person) -> None:
    # mypy-error: "Rename"; expected "Deposit"
    # pyright-error: "Rename" is not assignable to "Deposit"
    await engine.tell_id_vid(id_, NO_VC, Rename("x"))
    # mypy-error: "Person"; expected "Account"
    # pyright-error: "Person" is not assignable to "Account"
    await engine.tell_state(person, Deposit(1))
    # mypy-error: "Person"; expected "Account"
    # pyright-error: "Person" is not assignable to "Account"
    await engine.find_from_state(person)
    # mypy-error: "bytes"; expected "EventId \| VersionControl"
    # pyright-error: "bytes"
    await engine.tell_id_vid(id_, bytes(16), Deposit(1))
    # mypy-error: "str"; expected "UUID"
    # pyright-error: "Literal\['x'\]" is not assignable to "UUID"
    await engine.find_id("x")
    # mypy-error: expression has type "Account", variable has type "Person"
    # pyright-error: "Account" is not assignable to "Person"
    found: Person = await engine.find_id(id_)
    print(found)


class WrongFacts(Accounts):
    # mypy-error: incompatible with return type "Sequence\[Deposited\]"
    # pyright-error: overrides class "Accounts" in an incompatible manner
    def tell(self, state: Account, command: Deposit, /) -> Sequence[Renamed]:
        return (Renamed("x"),)


class NoTell:
    def new_event(self, message: Message, /) -> Deposited:
        return EVENTS.decode(message)

    def new_message(self, fact: Deposited, /) -> Message:
        return EVENTS.encode(fact)

    def new_state(self, id_: UUID, /) -> Account:
        return Account(id_)

    def new_advancer(self) -> Advancer[Account, Deposited]:
        return FunctionAdvancer(advanced)


def wrong_behaviors(journal: Journal) -> None:
    # mypy-error: "NoTell"; expected "Behavior
    # pyright-error: "tell" is not present
    engine: Engine[Account, Deposit, Deposited] = Engine(journal, NoTell())
    print(engine)


# mypy-error: "type\[Renamed\]"; expected "type\[Deposited\]"
# pyright-error: "type\[Renamed\]"
EVENTS.register("renamed", Renamed)
# mypy-error: "Renamed"; expected "Deposited"
# pyright-error: "Renamed" is not assignable to "Deposited"
EVENTS.encode(Renamed("x"))
# mypy-error: "Renamed"; expected "Deposited"
# pyright-error: "Event\[Renamed\]" is not assignable to "Event\[Deposited\]"
advanced(Account(UUID(int=1)), Event(EventId(bytes(16)), Renamed("x")))


async def ping(workflows: Workflows, id_: UUID) -> None:
    # mypy-error: "AppendPing"; expected "Init"
    # pyright-error: "AppendPing" is not assignable to "Init"
    await workflows.init(id_, AppendPing(0, "x"))
    # mypy-error: "str"; expected "int"
    # pyright-error: "Literal\['0'\]" is not assignable to "int"
    await workflows.append_ping(id_, NO_VC, "0", "x")
    # mypy-error: "Deposit"
    # pyright-error: "Deposit"
    Behavior().tell(State(id_), Deposit(1))
