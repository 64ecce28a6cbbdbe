"""Stores against a dictionary: whatever is asked for, in whatever order, they do what it does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from persistence import (
    ABSENT,
    CheckRequest,
    Concurrency,
    DeleteOptions,
    DeleteRequest,
    ETagMismatchError,
    GetRequest,
    KeysLikeRequest,
    Operation,
    SetOptions,
    SetRequest,
    connect,
)
from persistence.like import parse_like
from tests.support.servers import KINDS, Server
from tests.support.stores import BACKENDS, Backend, FullStore, SetClock

T = TypeVar("T")
PARTITIONS = st.sampled_from(["", "p", "p/q"])
KEYS = st.sampled_from(["a", "a||b", "a||b||c", "b", "\u00e4", "\uffff", "\U0001f600", "B"])
BOUNDS = st.one_of(st.just(""), KEYS)
VALUES = st.binary(max_size=8)
WRONG_ETAG = "f" * 16


@attrs.frozen
class Row:
    value: bytes
    etag: str
    expires: float | None


@attrs.frozen
class Step:
    """One operation as drawn; which etag it carries is decided when its turn comes."""

    kind: str
    key: str
    value: bytes
    etag: str
    first: bool
    ttl_seconds: int


STEPS = st.builds(
    Step,
    kind=st.sampled_from(["set", "set", "delete", "check"]),
    key=KEYS,
    value=VALUES,
    etag=st.sampled_from(["none", "none", "right", "wrong"]),
    first=st.booleans(),
    ttl_seconds=st.sampled_from([-1, 0, 5, 50]),
)


class StoreMachine(RuleBasedStateMachine):
    """Makes an empty database with `make_backend`; without a clock that can be set no row expires."""

    make_backend: Callable[[Path], Backend]
    sets_clock = True

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.backend: Backend = type(self).make_backend(Path(self.directory.name))
        self.rows: dict[tuple[str, str], Row] = {}
        self.now = 0.0
        self.store: FullStore = self.backend.open_store()
        self.run(self.store.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.store.aclose())
        self.runner.close()
        self.directory.cleanup()

    def live(self, partition: str) -> dict[str, Row]:
        return {
            key: row
            for (place, key), row in sorted(self.rows.items())
            if place == partition and (row.expires is None or row.expires > self.now)
        }

    def request(self, partition: str, step: Step) -> Operation:
        row = self.live(partition).get(step.key)
        known = row.etag if row else WRONG_ETAG
        etag = {"none": None, "right": known, "wrong": WRONG_ETAG}[step.etag]
        concurrency = Concurrency.FIRST_WRITE if step.first else Concurrency.DEFAULT
        if step.kind == "check":
            return CheckRequest(partition, step.key, etag or ABSENT)
        if step.kind == "delete":
            options = DeleteOptions(concurrency=concurrency)
            return DeleteRequest(partition=partition, key=step.key, etag=etag, options=options)
        return SetRequest(
            partition=partition,
            key=step.key,
            value=step.value,
            etag=etag,
            metadata={
                "ttlInSeconds": str(step.ttl_seconds if self.sets_clock else max(0, step.ttl_seconds) * 3600)
            },
            options=SetOptions(concurrency=concurrency),
        )

    def holds(self, operation: Operation) -> bool:
        row = self.live(operation.partition).get(operation.key)
        if operation.etag is ABSENT:
            return row is None
        if operation.etag:
            return row is not None and row.etag == operation.etag
        assert not isinstance(operation, CheckRequest)
        return operation.options.concurrency is not Concurrency.FIRST_WRITE or row is None

    def expect(self, operations: Sequence[Operation], outcome: str | BaseException) -> None:
        """Carry the multi out on the dictionary, and compare what came of it."""
        if not all(self.holds(operation) for operation in operations):
            assert isinstance(outcome, ETagMismatchError), (operations, outcome)
            return
        assert isinstance(outcome, str), (operations, outcome)
        for operation in operations:
            slot = (operation.partition, operation.key)
            if isinstance(operation, SetRequest):
                ttl = int(operation.metadata["ttlInSeconds"])
                self.rows[slot] = Row(operation.value, outcome, self.now + ttl if ttl > 0 else None)
            elif isinstance(operation, DeleteRequest):
                self.rows.pop(slot, None)

    async def outcome(self, operations: Sequence[Operation]) -> str | ETagMismatchError:
        try:
            return await self.store.multi(operations)
        except ETagMismatchError as error:
            return error

    @rule(partition=PARTITIONS, steps=st.lists(STEPS, min_size=1, max_size=5))
    def multi(self, partition: str, steps: list[Step]) -> None:
        operations = [self.request(partition, step) for step in steps]
        self.expect(operations, self.run(self.outcome(operations)))

    @rule(
        multis=st.lists(
            st.tuples(PARTITIONS, st.lists(STEPS, min_size=1, max_size=3)), min_size=2, max_size=6
        )
    )
    def multis_at_once(self, multis: list[tuple[str, list[Step]]]) -> None:
        batch = [[self.request(partition, step) for step in steps] for partition, steps in multis]

        async def together() -> list[str | ETagMismatchError]:
            return await asyncio.gather(*(self.outcome(operations) for operations in batch))

        for operations, outcome in zip(batch, self.run(together()), strict=True):
            self.expect(operations, outcome)

    @rule(partition=PARTITIONS, step=STEPS.filter(lambda step: step.kind != "check"))
    def single(self, partition: str, step: Step) -> None:
        operation = self.request(partition, step)

        async def single() -> str | ETagMismatchError:
            try:
                if isinstance(operation, SetRequest):
                    await self.store.set(operation)
                    request = GetRequest(partition=partition, key=step.key)
                    return (await self.store.get(request)).etag or ""
                assert isinstance(operation, DeleteRequest)
                await self.store.delete(operation)
            except ETagMismatchError as error:
                return error
            return ""

        self.expect([operation], self.run(single()))

    @precondition(lambda self: self.sets_clock)
    @rule(seconds=st.sampled_from([1, 5, 60]))
    def wait(self, seconds: int) -> None:
        self.backend.clock.advance(seconds)
        self.now += seconds

    @rule(
        partition=PARTITIONS,
        start=BOUNDS,
        end=BOUNDS,
        limit=st.sampled_from([None, 0, 1, 3]),
        reverse=st.booleans(),
    )
    def scan(self, partition: str, start: str, end: str, limit: int | None, *, reverse: bool) -> None:
        async def scan() -> list[tuple[str, bytes, str]]:
            rows = self.store.scan(partition, start, end, limit=limit, reverse=reverse)
            return [(item.key, item.value, item.etag) async for item in rows]

        expected = [
            (key, row.value, row.etag)
            for key, row in self.live(partition).items()
            if start <= key and (key < end or not end)
        ]
        assert self.run(scan()) == (expected[::-1] if reverse else expected)[:limit]

    @rule(partition=PARTITIONS, pattern=st.sampled_from(["%", "a%", "_", "%||%", "B", "%\u00e4"]))
    def keys_like(self, partition: str, pattern: str) -> None:
        request = KeysLikeRequest(partition=partition, pattern=pattern)
        matches: Callable[[str], bool] = parse_like(pattern).matcher()
        expected = tuple(key for key in self.live(partition) if matches(key))
        assert self.run(self.store.keys_like(request)).keys == expected

    @rule(partition=PARTITIONS, prefix=st.sampled_from(["a", "a||", "a||b", "b"]))
    def delete_with_prefix(self, partition: str, prefix: str) -> None:
        family = prefix if prefix.endswith("||") else prefix + "||"
        members = [
            key for key in self.live(partition) if key.startswith(family) and "||" not in key[len(family) :]
        ]
        assert self.run(self.store.delete_with_prefix(partition, prefix)) == len(members)
        for key in members:
            del self.rows[partition, key]

    @rule()
    def reopen(self) -> None:
        other = self.backend.open_store()
        self.run(other.__aenter__())
        self.run(self.store.aclose())
        self.store = other

    @invariant()
    def holds_the_same_rows(self) -> None:
        async def everything() -> dict[tuple[str, str], tuple[bytes, str]]:
            found: dict[tuple[str, str], tuple[bytes, str]] = {}
            for partition in ("", "p", "p/q"):
                async for item in self.store.scan(partition, "", ""):
                    found[partition, item.key] = (item.value, item.etag)
            return found

        expected = {
            (partition, key): (row.value, row.etag)
            for partition in ("", "p", "p/q")
            for key, row in self.live(partition).items()
        }
        assert self.run(everything()) == expected


class MemoryMachine(StoreMachine):
    make_backend = staticmethod(BACKENDS["memory"])


class SqliteMachine(StoreMachine):
    make_backend = staticmethod(BACKENDS["sqlite"])


MODEL_SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], stateful_step_count=30)
TestMemoryStore = MemoryMachine.TestCase
TestMemoryStore.settings = settings(MODEL_SETTINGS, max_examples=100)
TestSqliteStore = SqliteMachine.TestCase
TestSqliteStore.settings = settings(MODEL_SETTINGS, max_examples=40)


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
def test_store_on_a_server(kind: str, server_of: Callable[[str], Server]) -> None:
    server = server_of(kind)

    def make_backend(_: Path) -> Backend:
        url = server.fresh_url()
        return Backend(kind, lambda: cast("FullStore", connect(url)), SetClock())  # it declares all of it

    class ServerMachine(StoreMachine):
        sets_clock = False

    ServerMachine.make_backend = staticmethod(make_backend)
    run_state_machine_as_test(ServerMachine, settings=settings(MODEL_SETTINGS, max_examples=2))
