"""Every server keeps the contract, all of it but what its backend does not declare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final

import attrs
import pytest

from persistence import Feature, HasDurability, HasServerVersion, Store, conformance, connect
from persistence.backends import Backend, backend_of
from persistence.conformance import Case
from tests.support.servers import KINDS, Server

pytestmark = pytest.mark.server

# Their cases wait for the server's clock, so they wait together.
EXPIRING: Final = tuple(case for case in conformance.CASES if Feature.TTL in case.needs)
PROMPT: Final = tuple(case for case in conformance.CASES if case not in EXPIRING)


@pytest.fixture(scope="session")
def url_of(server_of: Callable[[str], Server]) -> Callable[[str], str]:
    """One place on each server for all cases, as each has a partition of its own in it."""
    urls: dict[str, str] = {}

    def url_of_kind(kind: str) -> str:
        if kind not in urls:
            urls[kind] = server_of(kind).fresh_url()
        return urls[kind]

    return url_of_kind


@pytest.mark.parametrize("case", PROMPT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
async def test_server_keeps_the_contract(kind: str, case: Case, url_of: Callable[[str], str]) -> None:
    await case.check(partial(connect, url_of(kind)))


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_expire_on_a_server(kind: str, url_of: Callable[[str], str]) -> None:
    open_store = partial(connect, url_of(kind))
    async with asyncio.TaskGroup() as group:
        for case in EXPIRING:
            group.create_task(case.check(open_store), name=case.name)


@attrs.frozen
class Opened:
    """A store on a server, and what is said of its backend."""

    store: Store
    backend: Backend


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> AsyncIterator[Opened]:
    url = url_of(request.param)
    backend = backend_of(url)
    assert backend is not None
    async with connect(url) as store:
        yield Opened(store, backend)


def test_open_store_has_the_features_of_its_backend(opened: Opened) -> None:
    # Fewer are possible on servers that forbid something. Ours do not, so no case is skipped without being noticed.
    assert opened.store.features == opened.backend.features


def test_cases_are_skipped_for_what_the_backend_does_not_declare_and_nothing_else(opened: Opened) -> None:
    skipped = {case.name for case in conformance.CASES if not case.needs <= opened.store.features}
    lacking = set(Feature) - opened.backend.features
    assert skipped == {case.name for case in conformance.CASES if case.needs & lacking}
    assert len(skipped) < len(conformance.CASES) // 4


def test_open_store_promises_no_more_than_its_backend(opened: Opened) -> None:
    limits, usual = attrs.astuple(opened.store.limits), attrs.astuple(opened.backend.limits)
    assert all(0 < limit <= most for limit, most in zip(limits, usual, strict=True))


def test_open_store_says_what_it_is_connected_to_and_what_can_be_lost(opened: Opened) -> None:
    assert isinstance(opened.store, HasServerVersion)
    assert isinstance(opened.store, HasDurability)
    assert opened.store.server_version.strip()
    assert opened.store.durability.strip()
