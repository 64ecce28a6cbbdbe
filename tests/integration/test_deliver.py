"""`hsm deliver` against a real receiver: everything arrives, once, whatever ends the process."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from tests.crash._rows import problems
from tests.crash.deliver_kills import tell
from tests.support.deliveries import (
    TIME_LIMIT_SECONDS,
    Receiver,
    ended,
    hsm,
    receiver,
    start_hsm,
    write_lines,
)

DATABASE = "sqlite:///deliveries.db"
DELIVER = ("deliver", "deliveries.jsonl", "--db", DATABASE)
FAST = ("--first-retry", "0.05", "--longest-retry", "0.1")


def write(folder: Path, to: Receiver, count: int, **members: object) -> list[str]:
    """Deliveries spread over the receiver's ports; their ids."""
    ids = [f"d{number}" for number in range(count)]
    lines = [
        {"id": id_, "url": f"{to.urls[number % len(to.urls)]}/{id_}", **members}
        for number, id_ in enumerate(ids)
    ]
    write_lines(folder / "deliveries.jsonl", *lines)
    return ids


async def test_everything_arrives_once_and_a_second_run_sends_nothing(tmp_path: Path) -> None:
    async with receiver() as to:
        ids = write(tmp_path, to, 100)
        first = await hsm(*DELIVER, folder=tmp_path)
        second = await hsm(*DELIVER, folder=tmp_path)
    assert to.ids == Counter(ids)
    assert (first.status, first.err, second.status, second.err) == (0, "", 0, "")
    assert "100 lines: 100 new, 0 known, 0 refused" in first.out
    assert "this run: 100 delivered, 0 failed" in first.out
    assert "100 lines: 0 new, 100 known, 0 refused" in second.out
    assert "in all: 100 delivered, 0 failed, 0 waiting" in second.out
    assert await problems(f"sqlite:///{tmp_path}/deliveries.db") == []


async def test_what_fails_for_good_is_not_sent_again_and_the_status_is_1(tmp_path: Path) -> None:
    async def refuse_odd(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404 if int(request.path[2:]) % 2 else 200)

    async with receiver() as to:
        to.handler = refuse_odd
        ids = write(tmp_path, to, 10)
        first = await hsm(*DELIVER, folder=tmp_path)
        second = await hsm(*DELIVER, folder=tmp_path)
    assert to.ids == Counter(ids)
    assert (first.status, second.status) == (1, 1)
    assert "in all: 5 delivered, 5 failed, 0 waiting" in second.out


async def test_busy_receiver_is_asked_again_until_the_attempts_are_used_up(tmp_path: Path) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if to.ids["d0"] == 3 and request.path == "/d0" else 503)

    async with receiver() as to:
        to.handler = busy
        write(tmp_path, to, 2, max_attempts=3)
        result = await hsm(*DELIVER, *FAST, folder=tmp_path)
    assert to.ids == {"d0": 3, "d1": 3}
    assert result.status == 1
    assert "this run: 1 delivered, 1 failed for good, 4 retries" in result.out


async def test_a_destination_that_hangs_delays_no_other_and_each_is_bounded(tmp_path: Path) -> None:
    release = asyncio.Event()
    healthy_done = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.url.port == hanging_port:
            await release.wait()
        elif sum(count for id_, count in to.ids.items() if int(id_[1:]) % 2) == 40:
            healthy_done.set()
        return web.Response()

    async with receiver(ports=2) as to:
        to.handler = handle
        hanging_port = int(to.urls[0].rpartition(":")[2])
        write(tmp_path, to, 80)
        process = await start_hsm(*DELIVER, "--concurrency", "4", folder=tmp_path)
        await asyncio.wait_for(healthy_done.wait(), TIME_LIMIT_SECONDS)
        release.set()
        result = await ended(process)
    assert result.status == 0
    assert sum(to.ids.values()) == 80
    assert to.most[f"127.0.0.1:{hanging_port}"] == 4
    assert max(to.most.values()) <= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_in_order_and_the_next_run_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return web.Response()

    async with receiver() as to:
        to.handler = slow
        ids = write(tmp_path, to, 300)
        process = await start_hsm(*DELIVER, "--concurrency", "4", folder=tmp_path)
        await asyncio.wait_for(to.came.wait(), TIME_LIMIT_SECONDS)
        process.send_signal(number)
        stopped = await ended(process)
        sent = sum(to.ids.values())
        to.handler = lambda _: asyncio.sleep(0, web.Response())
        finished = await hsm(*DELIVER, folder=tmp_path)
    assert (stopped.status, stopped.err) == (128 + number, "")
    assert f"stopped by {number.name}; run the same command again to go on" in stopped.out
    assert 0 < sent < 300
    assert (finished.status, to.ids) == (0, Counter(ids))


async def test_deliveries_that_wait_for_their_next_attempt_survive_a_kill(tmp_path: Path) -> None:
    async with receiver() as to:
        to.handler = lambda _: asyncio.sleep(0, web.Response(status=503))
        ids = write(tmp_path, to, 20)
        process = await start_hsm(*DELIVER, "--first-retry", "0.5", folder=tmp_path)
        while len(to.ids) < 20:
            to.came.clear()
            await asyncio.wait_for(to.came.wait(), TIME_LIMIT_SECONDS)
        process.kill()
        await process.communicate()
        to.handler = lambda _: asyncio.sleep(0, web.Response())
        result = await hsm(*DELIVER, *FAST, folder=tmp_path)
    assert (result.status, set(to.ids)) == (0, set(ids))
    assert await problems(f"sqlite:///{tmp_path}/deliveries.db") == []


async def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    story = await tell(tmp_path, kills=3, lines=60, seed=2, say=lambda _: None)
    assert story.good, story
    assert story.books.delivered + story.books.failed == 60


async def test_progress_is_a_bar_on_a_terminal(tmp_path: Path) -> None:
    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return web.Response()

    async with receiver() as to:
        to.handler = slow
        write(tmp_path, to, 40)
        try:
            ours, theirs = pty.openpty()
        except OSError as error:
            if "HSM_REQUIRE_SERVERS" in os.environ:
                raise
            pytest.skip(f"there are no pseudo-terminals here: {error}")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hsm.cli",
            *DELIVER,
            cwd=tmp_path,
            stdout=theirs,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(theirs)
        shown = bytearray()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            while process.returncode is None:
                try:
                    shown += await asyncio.to_thread(screen.read, 4096)
                except OSError:  # the other side of a terminal is closed
                    break
        assert await process.wait() == 0
    text = shown.decode()
    assert "━" in text
    assert "/40" in text
    assert "this run: 40 delivered" in text


async def test_status_show_and_dead_tell_what_there_is(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=410 if request.path == "/d1" else 200)

    async with receiver() as to:
        to.handler = handle
        write(tmp_path, to, 3)
        await hsm(*DELIVER, folder=tmp_path)
    status = await hsm("status", "--db", DATABASE, "--state", "failed", folder=tmp_path)
    assert status.status == 0
    assert ["deliver", "SUCCEEDED", "2"] in [line.split() for line in status.out.splitlines()]
    assert [line.split()[:2] for line in status.out.splitlines() if line.startswith("d1")] == [
        ["d1", "FAILED"]
    ]
    show = await hsm("show", "--db", DATABASE, "d1", folder=tmp_path)
    assert show.status == 0
    assert "FAILED after 2 transitions" in show.out
    assert "attempt 1 of 10" in show.out
    assert "410" in show.out
    dead = await hsm("dead", "--db", DATABASE, folder=tmp_path)
    assert (dead.status, dead.out) == (0, "0 dead letters\n")


async def test_show_draws_pending_tasks(tmp_path: Path) -> None:
    async with receiver() as to:
        to.handler = lambda _: asyncio.sleep(0, web.Response(status=503, headers={"Retry-After": "1000"}))
        write(tmp_path, to, 1)
        process = await start_hsm(*DELIVER, folder=tmp_path)
        await asyncio.wait_for(to.came.wait(), TIME_LIMIT_SECONDS)
        async with asyncio.timeout(TIME_LIMIT_SECONDS):
            shown = await hsm("show", "--db", DATABASE, "d0", folder=tmp_path)
            while "BACKING_OFF" not in shown.out:
                shown = await hsm("show", "--db", DATABASE, "d0", folder=tmp_path)
        process.send_signal(signal.SIGTERM)
        await ended(process)
    assert shown.status == 0
    assert "callbacks.Callback BACKING_OFF after 2 transitions" in shown.out
    assert "task callbacks.Backoff at " in shown.out
    assert "last failure: HTTP 503" in shown.out


async def test_demo_tells_its_story_and_loses_nothing(tmp_path: Path) -> None:
    result = await hsm("demo", "--count", "80", "--keep", tmp_path / "demo", folder=tmp_path)
    assert result.status == 0, result
    assert "0 lost, 0 inconsistent" in result.out
    assert await problems(f"sqlite:///{tmp_path}/demo/deliveries.db") == []
