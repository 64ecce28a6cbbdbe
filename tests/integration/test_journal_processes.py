"""A journal in several processes: they commit to one history, hear of each other, and are killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

import persistence
from persistence.journal import EPOCH, Journal, JournalOptions
from tests.support.histories import codes, drain, numbered
from tests.support.servers import Server
from tests.support.stores import run_together, start_python

HISTORY = UUID(int=7)
KILLS = Path(__file__).parents[1] / "crash" / "journal_kills.py"

APPEND = """
import asyncio, sys, uuid
import persistence
from persistence.journal import RETRY_NO_VC, Journal
from tests.support.histories import numbered

async def main(url, first, count):
    async with persistence.connect(url) as store:
        journal = Journal(store, "tests")
        numbers = range(first, first + count)
        await asyncio.gather(*(journal.commit(uuid.UUID(int=7), numbered(n), RETRY_NO_VC) for n in numbers))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""

FOLLOW = """
import asyncio, sys
from datetime import timedelta
import persistence
from persistence.journal import Journal, JournalOptions

async def main(url, count):
    options = JournalOptions(poll_interval=timedelta(milliseconds=50))
    async with persistence.connect(url) as store, Journal(store, "tests", options=options) as journal:
        async for item in journal.feed.follow():
            print(item.position, item.event.message().status_code, flush=True)
            if item.position == count:
                break

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("valkey", marks=pytest.mark.server),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path, server_of: Callable[[str], Server]) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    return server_of(request.param).fresh_url()


async def test_fifty_commits_of_four_processes_end_in_one_chain(url: str) -> None:
    shares = [(0, 13), (13, 13), (26, 12), (38, 12)]
    arguments = [(url, str(first), str(count)) for first, count in shares]
    await asyncio.to_thread(run_together, APPEND, arguments)

    async with persistence.connect(url) as store:
        journal = Journal(store, "tests")
        events = await drain(journal.find(HISTORY))  # which checks that each follows the one before
        assert sorted(await codes(journal, HISTORY)) == list(range(50))
        assert [event.serial for event in events] == list(range(1, 51))
        assert await journal.head(HISTORY) == events[-1].id
        assert await journal.feed.last_position() == 50


async def test_feed_is_followed_from_another_process(url: str) -> None:
    options = JournalOptions(poll_interval=timedelta(milliseconds=50))
    async with persistence.connect(url) as store, Journal(store, "tests", options=options) as journal:
        version = (await journal.commit(HISTORY, numbered(0), EPOCH)).version
        with start_python(FOLLOW, url, "20") as follower:
            assert follower.stdout is not None
            lines = [await asyncio.to_thread(follower.stdout.readline)]
            for number in range(1, 20):
                version = (await journal.commit(HISTORY, numbered(number), version)).version
                lines.append(await asyncio.to_thread(follower.stdout.readline))
            _, errors = await asyncio.to_thread(follower.communicate)

    assert follower.returncode == 0, errors
    assert lines == [f"{number + 1} {number}\n" for number in range(20)]


def test_killed_subscribers_miss_nothing_and_see_nothing_twice() -> None:
    result = subprocess.run(
        [sys.executable, str(KILLS), "--kills", "2"], capture_output=True, text=True, check=False, timeout=240
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "missed 0, doubled 0, out of order 0" in result.stdout
