"""Real servers for tests: started when the first test asks, skipped where they are not installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any, Protocol, Unpack

import pytest
from hypothesis import HealthCheck, settings

from tests.support.servers import MissingServerError, Server, ServerOptions, running

# A machine that is busy with something else is no defect: no example has a deadline.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


class NewServer(Protocol):
    """Starts a server."""

    def __call__(self, kind: str, **options: Unpack[ServerOptions]) -> Server: ...


@pytest.fixture(scope="session")
def server_of() -> Iterator[Callable[[str], Server]]:
    """The session's server of a kind. All tests share it: take a `fresh_url`, and leave it running."""
    servers: dict[str, Server] = {}
    with ExitStack() as stack:

        def server_of_kind(kind: str) -> Server:
            if kind not in servers:
                servers[kind] = _start(stack, kind)
            return servers[kind]

        yield server_of_kind


@pytest.fixture
def new_server() -> Iterator[NewServer]:
    """Starts servers for one test alone, which it may kill."""
    with ExitStack() as stack:

        def start(kind: str, **options: Unpack[ServerOptions]) -> Server:
            options["own"] = True
            return _start(stack, kind, **options)

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give all tests that miss a server one place, so that the summary has a line for each server."""
    del item
    report = yield
    if report.skipped and call.excinfo and isinstance(call.excinfo.value.__context__, MissingServerError):
        report.longrepr = (__file__, _start.__code__.co_firstlineno, str(call.excinfo.value))
    return report


def _start(stack: ExitStack, kind: str, **options: Unpack[ServerOptions]) -> Server:
    try:
        return stack.enter_context(running(kind, **options))
    except MissingServerError as error:
        if os.environ.get("HSM_REQUIRE_SERVERS"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
