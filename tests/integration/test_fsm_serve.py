"""`hsm fsm serve` as a process: it ends in order, and goes on after SIGKILL; nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiobotocore.session import AioSession
from google.protobuf.empty_pb2 import Empty
from grpc import StatusCode
from grpc.aio import AioRpcError
from redis.asyncio import Redis

from hsm.fsm.database import DatabaseStore
from hsm.fsm.redis import RedisStore
from hsm.fsm.service import encode_request
from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import (
    EventOutcome,
    EventRequest,
    EventResponse,
    FiniteStateMachine,
    GetFsmRequest,
    HealthResponse,
)
from tests.support.deliveries import hsm
from tests.support.fsm.commands import hsm_fsm
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.processes import serving_process
from tests.support.fsm.service import client_of, event_for, new_machine, outcome_of, until
from tests.support.redis_commands import execute
from tests.support.servers import Server
from tests.support.servers._process import free_port
from tests.support.sqs import ENVIRONMENT, queues, sqs_server

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

MACHINES = 5


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with sqs_server() as url:
        yield url


LAYOUT = pytest.param("layout", marks=pytest.mark.server)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("valkey", marks=pytest.mark.server),
        LAYOUT,
    ]
)
def database(
    request: pytest.FixtureRequest, tmp_path: Path, server_of: Callable[[str], Server]
) -> tuple[str, ...]:
    """The options of the database."""
    match request.param:
        case "sqlite":
            return ("--db", f"sqlite:///{tmp_path}/fsm.db")
        case "layout":
            url = server_of("valkey").fresh_url().partition("?")[0]
            return ("--db", url, "--redis-layout", "--namespace", tmp_path.name)
        case kind:
            return ("--db", server_of(kind).fresh_url())


def open_store(database: tuple[str, ...]) -> StoreManager:
    if "--redis-layout" in database:
        address = database[1].partition("//")[2].partition("/")[0]
        return RedisStore(address, namespace=database[-1])
    return DatabaseStore(database[1])


async def put_counters(store: StoreManager) -> None:
    await store.put_config(counter())
    for number in range(MACHINES):
        await store.put_state_machine(f"c{number}", FiniteStateMachine(config_id="counters:v1", state="s0"))


async def check_machines(store: StoreManager, event_ids: set[str]) -> None:
    """Every event has moved its machine once, each history is a path, each machine is in one state set."""
    seen: list[str] = []
    for number in range(MACHINES):
        machine = await store.get_state_machine(f"c{number}", "counters")
        seen += [event.event_id for event in machine.history]
        path = [(getattr(event.transition, "from"), event.transition.to) for event in machine.history]
        assert all(one[1] == other[0] for one, other in pairwise(path))
        assert machine.revision == len(machine.history) + 1
        holders = [
            state
            for state in counter().states
            if f"c{number}" in await store.get_all_in_state("counters", state)
        ]
        assert holders == [machine.state]
    assert sorted(seen) == sorted(event_ids)
    for event_id in event_ids:
        assert (await store.get_outcome_for_event(event_id, "counters")).code == EventOutcome.Ok
    assert [each async for each in store.pending_machines()] == []


def counter_event(number: int) -> EventRequest:
    return event_for(f"c{number % MACHINES}", "next", config="counters", event_id=f"e{number}")


@pytest.mark.parametrize("database", ["sqlite", LAYOUT], indirect=True)
async def test_it_ends_in_order_with_everything_accepted_done(
    database: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving_process(*database, folder=tmp_path) as (served, client):
        await client.PutConfiguration(counter())
        for number in range(MACHINES):
            await client.PutFiniteStateMachine(new_machine(f"c{number}", config_id="counters:v1"))
        assert (await client.Health(Empty())).state == HealthResponse.READY
        accepted: set[str] = set()
        numbers = itertools.count()
        enough = asyncio.Event()

        async def send() -> None:
            with suppress(AioRpcError):  # it has ended
                while True:
                    accepted.add((await client.SendEvent(counter_event(next(numbers)))).event_id)
                    if len(accepted) == 100:
                        enough.set()

        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(send())
            await enough.wait()
            assert await served.stop() == 0, served.said()

    async with open_store(database) as store:
        await check_machines(store, accepted)


async def test_killed_while_it_accepts_nothing_accepted_is_lost(
    database: tuple[str, ...], tmp_path: Path
) -> None:
    """Each event is sent until it is accepted, whatever happens to the service, and some twice."""
    numbers = iter(range(300))
    accepted: set[str] = set()

    async def send(client: StatemachineServiceAsyncStub) -> None:
        for number in numbers:
            while f"e{number}" not in accepted:
                try:
                    accepted.add((await client.SendEvent(counter_event(number), timeout=5)).event_id)
                except AioRpcError:
                    await asyncio.sleep(0.02)

    port = free_port()
    serve = (*database, "--listen", f"127.0.0.1:{port}")
    async with client_of(port) as client:
        async with serving_process(*serve, folder=tmp_path) as (served, _):
            await client.PutConfiguration(counter())
            for number in range(MACHINES):
                await client.PutFiniteStateMachine(new_machine(f"c{number}", config_id="counters:v1"))
            senders = [asyncio.create_task(send(client)) for _ in range(8)]

            async def some_accepted() -> bool:
                return len(accepted) >= 100

            await until(some_accepted)
            served.kill()
            await served.ended()
        async with serving_process(*serve, folder=tmp_path) as (served, _):
            await asyncio.gather(*senders)
            for number in range(0, 300, 50):
                await client.SendEvent(counter_event(number))
            for event_id in accepted:
                await outcome_of(client, event_id, "counters")
            assert await served.stop() == 0, served.said()

    assert len(accepted) == 300
    async with open_store(database) as store:
        await check_machines(store, accepted)


async def test_killed_between_a_queue_and_a_queue(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    database = ("--db", f"sqlite:///{tmp_path}/fsm.db")
    async with DatabaseStore(database[1]) as store:
        await put_counters(store)
        await store.put_config(orders())
        await store.put_state_machine("o", FiniteStateMachine(config_id="orders:v1", state="start"))
    async with queues(endpoint, AioSession()) as amazon:
        events, dead, outcomes = [
            await amazon.new(f"killed-{each}") for each in ("events", "dead", "outcomes")
        ]
        requests = [counter_event(number) for number in range(100)]
        # Refused, so that their outcomes are published.
        requests += [event_for("o", "deliver", event_id=f"refused{number}") for number in range(20)]
        await asyncio.gather(*(amazon.send(events, each) for each in requests))
        await amazon.send(events, "poison")
        arguments = (
            *database,
            *("--sqs-endpoint", endpoint, "--sqs-events", "killed-events"),
            *(
                "--sqs-dead-letters",
                "killed-dead",
                "--sqs-outcomes",
                "killed-outcomes",
                "--sqs-visibility",
                "3",
            ),
        )
        async with serving_process(*arguments, folder=tmp_path) as (served, _):

            async def half_done() -> bool:
                return sum(await amazon.count(events)) < 70

            await until(half_done)
            served.kill()
            await served.ended()
        async with serving_process(*arguments, folder=tmp_path) as (served, _):

            async def all_done() -> bool:
                return await amazon.count(events) == (0, 0)

            await until(all_done)
            assert await served.stop() == 0, served.said()
        letters = await amazon.take(dead)
        published = {each.event_id: each.outcome.code for each in await amazon.responses(outcomes)}

    assert {letter["Body"] for letter in letters} == {"poison"}
    assert published == {f"refused{number}": EventOutcome.TransitionNotAllowed for number in range(20)}
    async with DatabaseStore(database[1]) as store:
        await check_machines(store, {f"e{number}" for number in range(100)})


@pytest.mark.server
async def test_killed_between_a_stream_and_a_stream(
    server_of: Callable[[str], Server], tmp_path: Path
) -> None:
    server = server_of("valkey").fresh_url().partition("?")[0]
    name = tmp_path.name
    database = ("--db", f"sqlite:///{tmp_path}/fsm.db")
    async with DatabaseStore(database[1]) as store:
        await put_counters(store)
        await store.put_config(orders())
        await store.put_state_machine("o", FiniteStateMachine(config_id="orders:v1", state="start"))
    arguments = (
        *database,
        *("--stream-url", server, "--stream-events", f"{name}:events", "--stream-consumer", "one"),
        *("--stream-dead-letters", f"{name}:dead", "--stream-outcomes", f"{name}:outcomes"),
    )
    client = Redis.from_url(server)
    try:
        for number in range(300):
            await execute(
                client, "XADD", f"{name}:events", "*", "body", encode_request(counter_event(number))
            )
            if number % 15 == 0:
                refused = event_for("o", "deliver", event_id=f"refused{number}")
                await execute(client, "XADD", f"{name}:events", "*", "body", encode_request(refused))
        await execute(client, "XADD", f"{name}:events", "*", "body", "poison")

        async def left() -> int:
            with suppress(IndexError):
                (group,) = await client.xinfo_groups(f"{name}:events")
                return int(group["pending"]) + int(group["lag"] or 0)
            return 321

        async with serving_process(*arguments, folder=tmp_path) as (served, _):

            async def some_done() -> bool:
                return await left() < 250

            await until(some_done)
            served.kill()
            await served.ended()
        async with serving_process(*arguments, folder=tmp_path) as (served, _):

            async def all_done() -> bool:
                return await left() == 0

            await until(all_done)
            assert await served.stop() == 0, served.said()
        letters = await client.xlen(f"{name}:dead")
        entries = await execute(client, "XRANGE", f"{name}:outcomes", "-", "+")
    finally:
        await client.aclose()

    assert letters == 1
    published = {decoded(fields).event_id for _, fields in entries}
    assert published == {f"refused{number}" for number in range(0, 300, 15)}
    async with DatabaseStore(database[1]) as store:
        await check_machines(store, {f"e{number}" for number in range(300)})


def decoded(fields: dict[bytes, bytes] | list[bytes]) -> EventResponse:
    import base64

    body = fields[b"body"] if isinstance(fields, dict) else fields[1]
    return EventResponse.FromString(base64.b64decode(body))


async def test_history_and_outcomes_are_kept_as_long_as_asked_for(tmp_path: Path) -> None:
    database = ("--db", f"sqlite:///{tmp_path}/fsm.db")
    keeping = ("--history-cap", "2", "--keep-outcomes", "1", "--keep-events", "1")
    async with serving_process(*database, *keeping, folder=tmp_path) as (served, client):
        await client.PutConfiguration(counter())
        await client.PutFiniteStateMachine(new_machine("c0", config_id="counters:v1"))
        for number in range(5):
            await client.SendEvent(event_for("c0", "next", config="counters", event_id=f"e{number}"))
        question = EventRequest(config="counters", id="e4")

        async def processed() -> bool:
            machine = await client.GetFiniteStateMachine(GetFsmRequest(config="counters", id="c0"))
            return machine.revision == 6

        async def forgotten() -> bool:
            try:
                await client.GetEventOutcome(question)
            except AioRpcError as error:
                return error.code() == StatusCode.NOT_FOUND
            return False

        await until(processed)
        machine = await client.GetFiniteStateMachine(GetFsmRequest(config="counters", id="c0"))
        await until(forgotten)
        assert await served.stop() == 0

    assert [event.event_id for event in machine.history] == ["e3", "e4"]
    assert machine.history_dropped == 3


async def test_log_records_are_json_on_demand(tmp_path: Path) -> None:
    database = ("--db", f"sqlite:///{tmp_path}/fsm.db", "--log-json")
    async with serving_process(*database, folder=tmp_path) as (served, _):
        assert await served.stop() == 0
    records = [json.loads(line) for line in served.said().splitlines()]
    assert {"listening" in record["message"] for record in records} >= {True}
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--tls-dir", "nowhere"), "nowhere/server.pem"),
        (("--insecure", "--listen", "127.0.0.1:{port}"), "cannot listen on '127.0.0.1:{port}'"),
    ],
)
async def test_what_it_cannot_listen_with_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    port = free_port()
    occupied = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    async with occupied:
        result = await hsm(
            *("fsm", "serve", "--db", f"sqlite:///{tmp_path}/fsm.db", "--log-level", "error"),
            *(each.format(port=port) for each in arguments),
            folder=tmp_path,
        )
    assert result.status == 2
    assert text.format(port=port) in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--insecure", "--mutual-tls"), "--insecure does not go with --mutual-tls"),
        (("--insecure", "--stream-events", "x"), "--stream-url"),
        (("--insecure", "--stream-events", "x", "--stream-url", "redis://127.0.0.1:1"), "Connect"),
        (("--insecure", "--sqs-events", "x", "--sqs-endpoint", "http://127.0.0.1:1"), "127.0.0.1:1"),
    ],
)
async def test_what_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    database = ("--db", f"sqlite:///{tmp_path}/fsm.db")
    result = await hsm_fsm("serve", *database, "--log-level", "error", *arguments, folder=tmp_path)

    assert result.status == 2
    assert text in result.err
    assert "Traceback" not in result.err


async def test_memory_is_refused(tmp_path: Path) -> None:
    result = await hsm_fsm("serve", "--insecure", "--db", "memory://x", folder=tmp_path)

    assert (result.status, "empty database in each process" in result.err) == (2, True)
