"""Each kind of server is killed twice under a store that goes on; `tests/crash/store_kills.py` does it often."""

from __future__ import annotations

import pytest

from tests.conftest import NewServer
from tests.crash.store_kills import run_kills
from tests.support.servers import KINDS


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
async def test_killed_server_loses_nothing_that_was_acknowledged(kind: str, new_server: NewServer) -> None:
    books = await run_kills(new_server(kind, durable=True), kills=2, multis=100)
    assert books.problems == []
    assert (books.lost, books.found, books.half) == (set(), set(), set())
    assert books.acknowledged
    assert books.refused
