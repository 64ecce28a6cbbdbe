"""Servers are killed, and lines to them cut, under a store that goes on; `tests/crash/store_kills.py` does it often."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import NewServer
from tests.crash.store_kills import Books, run_cuts, run_kills
from tests.support.servers import KINDS, Server

pytestmark = pytest.mark.server


def expect_balanced(books: Books) -> None:
    assert books.problems == []
    assert (books.lost, books.found, books.half) == (set(), set(), set())
    assert books.acknowledged
    assert books.refused


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_server_loses_nothing_that_was_acknowledged(kind: str, new_server: NewServer) -> None:
    expect_balanced(await run_kills(new_server(kind, durable=True), kills=2, multis=100))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "valkey-cluster"])
async def test_what_was_carried_out_when_the_line_was_cut_is_known(
    kind: str, server_of: Callable[[str], Server]
) -> None:
    expect_balanced(await run_cuts(server_of(kind), cuts=3, multis=100))
