"""What the store of machines does when its database fails, hangs, is too small, or holds what it should not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import cast

import pytest

from hsm.fsm import (
    AcceptedEvent,
    AlreadyExistsError,
    DatabaseOptions,
    DatabaseStore,
    FSMStoreError,
    GenericStoreError,
    InvalidDataError,
    RevisionMismatchError,
    StoreTimeoutError,
    TooManyAttemptsError,
    new_state_machine,
    source_of,
)
from hsm.fsm._rows import machine_partition
from hsm.testing.faults import Call, FaultyStore
from persistence.errors import CommitOutcomeUnknownError, FeatureMissingError, StoreUnavailableError
from persistence.proto.statemachine_pb2 import EventOutcome, FiniteStateMachine
from persistence.store import (
    CheckRequest,
    EngineStore,
    Feature,
    GetRequest,
    Operation,
    SetRequest,
)
from persistence.stores.memory import MemoryStore
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.small import Small, small
from tests.support.fsm.suite import event, pending_of, request as asking, states_of

PARTITION = machine_partition("default", "orders")


@pytest.fixture
async def memory() -> AsyncIterator[MemoryStore]:
    async with MemoryStore() as memory:
        yield memory


@pytest.fixture
def faulty(memory: MemoryStore) -> FaultyStore:
    return FaultyStore(memory)


@pytest.fixture
async def store(faulty: FaultyStore) -> AsyncIterator[DatabaseStore]:
    async with DatabaseStore(faulty, options=DatabaseOptions(max_attempts=3)) as store:
        await fill(store)
        yield store
        faulty.reconnect()
        faulty.before = faulty.after = None


async def fill(store: DatabaseStore) -> None:
    await store.put_config(orders())
    await store.put_state_machine("1", new_state_machine(orders()))


def failing(error: Exception, *methods: str, times: int = 1_000_000) -> Callable[[Call], Awaitable[None]]:
    left = times

    async def hook(call: Call) -> None:
        nonlocal left
        if call.method in methods and left:
            left -= 1
            raise error

    return hook


async def hang(call: Call) -> None:
    await asyncio.Event().wait()


async def test_hanging_database_is_given_up(store: DatabaseStore, faulty: FaultyStore) -> None:
    store.set_timeout(timedelta(milliseconds=20))
    faulty.before = hang

    for call in (
        store.health(),
        store.get_config("orders:v9"),
        store.put_config(orders("v2")),
        store.get_all_configs(),
        store.get_state_machine("1", "orders"),
        store.put_state_machine("1", new_state_machine(orders())),
        store.tx_process_event("1", "orders", event("accept", "e1")),
        store.get_outcome_for_event("e1", "orders"),
        store.accept_event(asking("accept", "e2")),
    ):
        with pytest.raises(StoreTimeoutError, match="no answer in time"):
            await call
    # To close it waits no longer than any other call.
    await store.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_waits_for_an_event_is_told_that_the_store_was_closed(
    store: DatabaseStore, faulty: FaultyStore
) -> None:
    store.set_timeout(timedelta(milliseconds=20))
    reached = asyncio.Event()

    async def never(call: Call) -> None:
        reached.set()
        await asyncio.Event().wait()

    faulty.before = never
    answers = asyncio.gather(
        *(store.tx_process_event("1", "orders", event("accept", f"e{number}")) for number in range(3)),
        return_exceptions=True,
    )
    await reached.wait()
    store.set_timeout(timedelta(milliseconds=1))
    await store.aclose()

    assert [type(each) for each in await answers] == [StoreTimeoutError] * 3


async def test_event_that_was_given_up_is_processed_all_the_same(
    store: DatabaseStore, faulty: FaultyStore
) -> None:
    go_on = asyncio.Event()

    async def wait(call: Call) -> None:
        await go_on.wait()

    store.set_timeout(timedelta(milliseconds=20))
    faulty.before = wait
    with pytest.raises(StoreTimeoutError):
        await store.tx_process_event("1", "orders", event("accept", "e1"))
    go_on.set()
    await store.aclose()

    assert (await store.get_outcome_for_event("e1", "orders")).code == EventOutcome.Ok


async def test_failing_database_is_told(store: DatabaseStore, faulty: FaultyStore) -> None:
    faulty.cut_off()
    for call in (
        store.health(),
        store.get_all_configs(),
        store.get_all_in_state("orders", "start"),
        store.get_state_machine("1", "orders"),
        store.tx_process_event("1", "orders", event("accept", "e1")),
        store.get_event("e1", "orders"),
    ):
        with pytest.raises(GenericStoreError, match="cut off") as caught:
            await call
        assert isinstance(caught.value.__cause__, StoreUnavailableError)

    faulty.reconnect()
    outcome = await store.tx_process_event("1", "orders", event("accept", "e1"))
    assert outcome.code == EventOutcome.Ok


@pytest.mark.parametrize("carried_out", [False, True])
async def test_commit_of_unknown_outcome_happens_once(
    store: DatabaseStore, faulty: FaultyStore, carried_out: bool
) -> None:
    hook = failing(CommitOutcomeUnknownError("broken line"), "multi", times=1)
    faulty.before, faulty.after = (None, hook) if carried_out else (hook, None)

    outcome = await store.tx_process_event("1", "orders", event("accept", "e1"))

    assert outcome == EventOutcome(id="1", config="orders", revision=2)
    machine = await store.get_state_machine("1", "orders")
    assert [each.event_id for each in machine.history] == ["e1"]


async def test_attempts_come_to_an_end(
    store: DatabaseStore, faulty: FaultyStore, memory: MemoryStore
) -> None:
    other = DatabaseStore(memory)
    numbers = iter(range(1000))

    async def overtake(call: Call) -> None:
        if call.method == "multi":
            await other.put_state_machine("1", new_state_machine(orders()))
            next(numbers)

    faulty.before = overtake

    with pytest.raises(TooManyAttemptsError, match=r"retries exceeded \(3 attempts\)"):
        await store.tx_process_event("1", "orders", event("accept", "e1"))
    with pytest.raises(TooManyAttemptsError):
        await store.put_state_machine("1", new_state_machine(orders()))
    with pytest.raises(TooManyAttemptsError):
        await store.delete_state_machine("1", "orders")
    with pytest.raises(TooManyAttemptsError):
        await store.update_state("orders", "1", "", "start")
    assert next(numbers) == 12


async def test_everything_about_an_event_is_one_transaction(
    store: DatabaseStore, faulty: FaultyStore
) -> None:
    seen: list[Sequence[Operation]] = []

    async def watch(call: Call) -> None:
        if call.method == "multi":
            seen.append(cast("Sequence[Operation]", call.request))

    faulty.before = watch
    await store.tx_process_event("1", "orders", event("accept", "e1"))

    ((machine, *others),) = seen
    assert isinstance(machine, SetRequest)
    assert (machine.key, bool(machine.etag)) == ("m/1", True)
    kinds = sorted((type(each).__name__, each.key.partition("/")[0]) for each in others)
    assert kinds == [
        ("DeleteRequest", "s"),
        ("SetRequest", "h"),
        ("SetRequest", "o"),
        ("SetRequest", "s"),
    ]
    assert {each.partition for each in (machine, *others)} == {PARTITION}


async def test_refusal_rests_on_the_state_that_it_saw(store: DatabaseStore, faulty: FaultyStore) -> None:
    seen: list[Operation] = []

    async def watch(call: Call) -> None:
        if call.method == "multi":
            seen.extend(cast("Sequence[Operation]", call.request))

    faulty.before = watch
    await store.tx_process_event("1", "orders", event("ship", "e1"))

    assert isinstance(seen[0], CheckRequest)
    assert seen[0].key == "m/1"


async def test_event_to_a_known_machine_reads_nothing(store: DatabaseStore, faulty: FaultyStore) -> None:
    await store.tx_process_event("1", "orders", event("accept", "e1"))
    calls = faulty.calls

    await store.tx_process_event("1", "orders", event("ship", "e2"))

    assert faulty.calls == calls + 1


async def test_events_that_come_together_share_a_transaction(
    store: DatabaseStore, faulty: FaultyStore
) -> None:
    await store.put_config(counter())
    await store.put_state_machine("1", new_state_machine(counter()))
    writes = faulty.writes

    async def take_a_while(call: Call) -> None:
        await asyncio.sleep(0)

    faulty.before = take_a_while
    await asyncio.gather(
        *(store.tx_process_event("1", "counters", event("next", f"e{number}")) for number in range(60))
    )

    assert faulty.writes - writes <= 2
    assert len((await store.get_state_machine("1", "counters")).history) == 60


async def test_event_writes_as_much_after_a_long_history_as_after_a_short_one(
    store: DatabaseStore, faulty: FaultyStore
) -> None:
    await store.put_config(counter())
    await store.put_state_machine("1", new_state_machine(counter()))
    sizes: list[int] = []

    async def weigh(call: Call) -> None:
        if call.method == "multi":
            operations = cast("Sequence[Operation]", call.request)
            sizes.append(sum(len(each.value) for each in operations if isinstance(each, SetRequest)))

    faulty.before = weigh
    for number in range(500):
        await store.tx_process_event("1", "counters", event("stay", f"e{number:04}"))

    assert sizes[-1] <= sizes[0] + 10


async def test_many_events_fit_into_small_transactions(memory: MemoryStore) -> None:
    async with DatabaseStore(small(memory, operations=30)) as store:
        await store.put_config(counter())
        await store.put_state_machine("1", new_state_machine(counter()))
        events = [AcceptedEvent(asking("next", f"e{number:02}", "1", "counters")) for number in range(50)]

        outcomes = await store.process_events(events)

        assert [outcome.revision for outcome in outcomes] == list(range(2, 52))


async def test_large_events_share_no_transaction(memory: MemoryStore) -> None:
    async with DatabaseStore(small(memory, transaction_bytes=4000)) as store:
        await fill(store)
        names = ["accept", "ship", "deliver"]
        large = [asking(name, name) for name in names]
        for each in large:
            each.event.details = "x" * 700

        outcomes = await asyncio.gather(
            *(store.tx_process_event("1", "orders", each.event) for each in large)
        )

        assert [outcome.code for outcome in outcomes] == [EventOutcome.Ok] * 3


async def test_event_that_is_too_large_harms_no_other(memory: MemoryStore) -> None:
    async with DatabaseStore(small(memory, transaction_bytes=4000)) as store:
        await fill(store)
        huge = event("accept", "huge", details="x" * 5000)

        answers = await asyncio.gather(
            store.tx_process_event("1", "orders", event("accept", "e1")),
            store.tx_process_event("1", "orders", huge),
            store.tx_process_event("1", "orders", event("ship", "e2")),
            return_exceptions=True,
        )

        assert isinstance(answers[1], InvalidDataError)
        assert [event.event_id for event in (await store.get_state_machine("1", "orders")).history] == [
            "e1",
            "e2",
        ]


async def test_history_that_is_too_long_to_put_is_refused(memory: MemoryStore) -> None:
    async with DatabaseStore(small(memory, operations=30)) as store:
        history = [event("accept", str(number)) for number in range(40)]
        machine = FiniteStateMachine(config_id="orders:v1", state="start", history=history)

        with pytest.raises(InvalidDataError):
            await store.put_state_machine("1", machine)

        assert await store.get_all_machines("orders") == []


async def test_store_without_transactions_is_refused(memory: MemoryStore) -> None:
    poor = Small(memory)
    poor.features = memory.features - {Feature.TRANSACTIONAL}

    with pytest.raises(FeatureMissingError, match="transactional"):
        DatabaseStore(cast("EngineStore", poor))


async def test_store_that_cannot_expire_rows_is_refused_a_time_to_live(memory: MemoryStore) -> None:
    poor = Small(memory)
    poor.features = memory.features - {Feature.TTL}

    with pytest.raises(InvalidDataError, match="cannot let rows expire"):
        DatabaseStore(cast("EngineStore", poor), options=DatabaseOptions(event_ttl=timedelta(seconds=1)))


async def test_store_is_opened_and_closed_by_its_url() -> None:
    async with DatabaseStore("memory://") as store:
        await fill(store)
        await store.health()
    with pytest.raises(FSMStoreError):
        await store.health()


async def story(store: DatabaseStore) -> None:
    """Everything that is written, in a sequence that can be told again from any place."""
    await ignoring(store.put_config(orders()))
    await ignoring(store.put_state_machine("1", new_state_machine(orders()), expected_revision=0))
    await store.tx_process_event("1", "orders", event("accept", "e1"))
    await store.accept_event(asking("ship", "e2"))
    await store.accept_event(asking("explode", "e3"))
    await store.process_events(await store.pending_events("1", "orders"))
    await store.tx_process_event("1", "orders", event("deliver", "e4"))
    async for notification in store.notifications():
        await store.remove_notification(notification)


async def ignoring(call: Awaitable[object]) -> None:
    with contextlib.suppress(AlreadyExistsError, RevisionMismatchError):
        await call


@pytest.mark.parametrize("carried_out", [False, True])
async def test_crash_at_any_write_leaves_something_to_go_on_from(carried_out: bool) -> None:
    writes = 0
    while True:
        writes += 1
        async with MemoryStore() as memory:
            faulty = FaultyStore(memory)
            faulty.cut_off_at(writes, carried_out=carried_out)
            first = DatabaseStore(faulty, options=DatabaseOptions(notify=True))
            survived = True
            try:
                await story(first)
            except FSMStoreError:
                survived = False
            await check_whole(DatabaseStore(memory), memory)

            again = DatabaseStore(memory, options=DatabaseOptions(notify=True))
            await story(again)

            machine = await again.get_state_machine("1", "orders")
            assert [each.event_id for each in machine.history] == ["e1", "e2", "e4"]
            assert (machine.state, machine.revision) == ("delivered", 4)
            assert (await again.get_outcome_for_event("e3", "orders")).code == EventOutcome.EventNotAllowed
            assert [each async for each in again.notifications()] == []
            assert await pending_of(again) == {}
            await check_whole(again, memory)
        if survived:
            break
    assert writes > 6


async def check_whole(store: DatabaseStore, memory: MemoryStore) -> None:
    """Machine, history, index, events and outcomes agree."""
    if await store.get_all_machines("orders"):
        machine = await store.get_state_machine("1", "orders")
        state = "start"
        for made in machine.history:
            assert source_of(made.transition) == state
            state = made.transition.to
            assert (await store.get_outcome_for_event(made.event_id, "orders")).code == EventOutcome.Ok
        assert machine.state == state
        assert await states_of(store, "1", orders()) == [state]
    pending = {id_ for ids in (await pending_of(store)).values() for id_ in ids}
    for name in [item.key[2:] async for item in memory.scan(PARTITION, "e/", "e0")]:
        outcome = await memory.get(GetRequest(partition=PARTITION, key=f"o/{name}"))
        assert (outcome.data is None) == (name in pending)


async def test_steady_events_starve_no_other_writer(faulty: FaultyStore) -> None:
    """With one attempt each, so that nobody may be overtaken even once."""

    async def take_a_while(call: Call) -> None:
        for _ in range(call.number % 4):
            await asyncio.sleep(0)

    faulty.before = faulty.after = take_a_while
    async with DatabaseStore(faulty, options=DatabaseOptions(max_attempts=1, batch=2)) as store:
        await store.put_config(counter())
        await store.put_state_machine("1", new_state_machine(counter()))

        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(store.tx_process_event("1", "counters", event("next", f"e{number}")))
                if number % 10 == 0:
                    group.create_task(store.put_state_machine("1", new_state_machine(counter())))
                    group.create_task(store.reset_state_machine("1", "counters"))
                    group.create_task(store.get_state_machine("1", "counters"))

        assert (await store.get_state_machine("1", "counters")).revision == 1 + 60 + 12
