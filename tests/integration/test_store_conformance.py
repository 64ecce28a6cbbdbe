"""The memory and the SQLite store keep the contract; the suite notices stores that do not."""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import attrs
import pytest

from persistence import (
    Concurrency,
    Consistency,
    DeleteRequest,
    ETagMismatchError,
    Feature,
    GetRequest,
    GetResponse,
    InvalidRequestError,
    Limits,
    Operation,
    SetOptions,
    SetRequest,
    conformance,
    connect,
)
from persistence.conformance import Case, ConformanceError, check_store
from persistence.stores.memory import MemoryStore
from tests.support.stores import BACKENDS, Backend, SetClock


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return BACKENDS[request.param](tmp_path)


@pytest.mark.parametrize("case", conformance.CASES, ids=str)
async def test_store_keeps_the_contract(case: Case, backend: Backend) -> None:
    await case.check(backend.open_store, backend.clock.wait)


async def test_expiry_by_the_real_clock(tmp_path: Path) -> None:
    urls = (f"sqlite:///{tmp_path}/state.db", f"memory://{tmp_path.name}")
    keepers = [connect(url) for url in urls]
    names = ("a_row_is_there_until_it_expires", "the_expiry_time_is_about_right")
    cases = [case for case in conformance.CASES if case.name in names]
    async with asyncio.TaskGroup() as group:
        for url in urls:
            for case in cases:
                group.create_task(case.check(partial(connect, url)))
    assert len(cases) == len(names)
    assert len(keepers) == len(urls)


def test_every_case_is_documented_and_named_once() -> None:
    assert all(case.run.__doc__ for case in conformance.CASES)
    assert len({case.name for case in conformance.CASES}) == len(conformance.CASES)


class KeyValueStore(MemoryStore):
    """Declares nothing that is optional."""

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset()


async def test_what_a_store_does_not_declare_is_skipped_and_nothing_else() -> None:
    keeper = KeyValueStore("poor")
    report = await check_store(lambda: KeyValueStore("poor"), SetClock().wait)
    needing = {case.name for case in conformance.CASES if case.needs}
    assert set(report.skipped) == needing
    assert set(report.passed) == {case.name for case in conformance.CASES} - needing
    await keeper.aclose()


class SmallStore(MemoryStore):
    """Has room for what the suite needs at least."""

    @property
    def limits(self) -> Limits:
        return Limits(operations=10, transaction_bytes=8 * 1024, key_bytes=200, value_bytes=4 * 1024)


async def test_a_store_is_asked_for_no_more_than_its_limits_allow() -> None:
    clock = SetClock()
    keeper = SmallStore("small", clock=clock)
    report = await check_store(lambda: SmallStore("small", clock=clock), clock.wait)
    assert not report.skipped
    await keeper.aclose()


class ForgetfulDelete(MemoryStore):
    async def delete(self, request: DeleteRequest) -> None:
        pass


class CreatesUnderAnEtag(MemoryStore):
    async def set(self, request: SetRequest) -> None:
        try:
            await super().set(request)
        except ETagMismatchError:
            if (await self.get(GetRequest(partition=request.partition, key=request.key))).data is not None:
                raise
            await super().set(SetRequest(partition=request.partition, key=request.key, value=request.value))


class LetsTheLastWriteWin(MemoryStore):
    """Whatever etag it has brought."""

    async def set(self, request: SetRequest) -> None:
        last = request.options.concurrency is Concurrency.LAST_WRITE
        await super().set(attrs.evolve(request, etag=None) if last else request)


class ForgetsFirstWrites(MemoryStore):
    """In transactions, as some databases have no condition there but an etag."""

    async def multi(self, operations: Sequence[Operation]) -> str:
        plain = SetOptions()
        return await super().multi(
            [
                attrs.evolve(operation, options=plain) if isinstance(operation, SetRequest) else operation
                for operation in operations
            ]
        )


class KnowsNoReplicas(MemoryStore):
    async def get(self, request: GetRequest) -> GetResponse:
        if request.options.consistency is Consistency.EVENTUAL:
            raise InvalidRequestError("there are no replicas")
        return await super().get(request)


class TakesAnyOption(MemoryStore):
    async def set(self, request: SetRequest) -> None:
        await super().set(attrs.evolve(request, options=SetOptions()))


class WritesOneAfterTheOther(MemoryStore):
    async def multi(self, operations: Sequence[Operation]) -> str:
        etag = ""
        for operation in operations:
            etag = await super().multi((operation,))
        return etag


class LosesEmptyValues(MemoryStore):
    async def get(self, request: GetRequest) -> GetResponse:
        response = await super().get(request)
        return response if response.data else GetResponse()


class IgnoresTimeToLive(MemoryStore):
    def __init__(self, name: str) -> None:
        super().__init__(name, clock=lambda: 0)


@pytest.mark.parametrize(
    ("broken", "noticed_by"),
    [
        (ForgetfulDelete, "a_deleted_key_is_absent"),
        (CreatesUnderAnEtag, "an_etag_never_fits_an_absent_key"),
        (WritesOneAfterTheOther, "one_stale_etag_leaves_nothing_written"),
        (WritesOneAfterTheOther, "conditions_see_the_state_before_the_multi"),
        (LetsTheLastWriteWin, "every_row_of_the_table_holds_for_single_writes"),
        (CreatesUnderAnEtag, "every_row_of_the_table_holds_in_bulk"),
        (ForgetsFirstWrites, "every_row_of_the_table_holds_in_a_multi"),
        (KnowsNoReplicas, "every_consistency_is_taken"),
        (TakesAnyOption, "options_that_are_none_are_refused"),
        (LosesEmptyValues, "values_come_back_as_they_are"),
        (IgnoresTimeToLive, "a_row_is_there_until_it_expires"),
    ],
)
async def test_the_suite_notices_what_is_broken(broken: type[MemoryStore], noticed_by: str) -> None:
    case = next(case for case in conformance.CASES if case.name == noticed_by)
    with pytest.raises((ConformanceError, ETagMismatchError)):
        await case.check(lambda: broken("broken"), SetClock().wait)


async def test_all_failures_are_reported_together() -> None:
    keeper = LosesEmptyValues("broken")
    with pytest.raises(ExceptionGroup) as failed:
        await check_store(lambda: LosesEmptyValues("broken"), SetClock().wait)
    notes = [note for error in failed.value.exceptions for note in error.__notes__]
    assert {"in case values_come_back_as_they_are", "in case a_value_is_replaced"} <= set(notes)
    await keeper.aclose()


async def test_a_case_skips_by_the_standard_exception() -> None:
    case = next(case for case in conformance.CASES if Feature.WATCH in case.needs)
    with pytest.raises(unittest.SkipTest, match="watch"):
        await case.check(lambda: KeyValueStore("poor"))
