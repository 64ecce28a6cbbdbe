"""The participants: each workflow by itself, from where it was, and with a summary of what was seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import attrs
import pytest

from hsm.components.ping_registry import (
    ACTIVE_FOR,
    EXPIRED,
    REGISTRY_SERVER,
    Coordinator,
    InvalidNameError,
    JournalError,
    ParticipantOptions,
    RegistryDaemon,
    ServerDaemon,
    StateCode,
    summarized,
)
from hsm.testing import FakeClock
from hsm.testing.faults import Call
from persistence.errors import PersistenceError, StoreBrokenError, StoreClosedError, StoreUnavailableError
from persistence.journal import NO_VC, RETRY_NO_VC, NewEvent, PositionTrimmedError
from persistence.journal._rows import history_key
from persistence.proto.nogevents_pb2 import Event as Message
from tests.support.journals import World, world_of

SECOND = timedelta(seconds=1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Time is moved by hand, and so nothing may wait for a database."""
    async with world_of("memory://participants") as opened:
        yield opened


@attrs.define
class Scene:
    """A registry in which time is moved by hand."""

    world: World
    clock: FakeClock
    told: list[str]

    @property
    def options(self) -> ParticipantOptions:
        return ParticipantOptions(clock=self.clock, tell=self.told.append)

    @property
    def admin(self) -> Coordinator:
        return Coordinator(self.world.other_journal(self.clock), "reg", clock=self.clock)

    def registry(self) -> RegistryDaemon:
        return RegistryDaemon(self.world.journal(self.clock), "reg", self.options)

    def server(self, name: str) -> ServerDaemon:
        return ServerDaemon(self.world.journal(self.clock), "reg", name, self.options)

    async def pings(self, id_: UUID) -> list[tuple[str, str]]:
        return [(ping.sender, ping.request_id) for ping in (await self.admin.workflows.find(id_)).pings]


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world, FakeClock(), [])


@asynccontextmanager
async def running(*participants: ServerDaemon | RegistryDaemon) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(participant.run()) for participant in participants]
    try:
        yield
        assert [task for task in tasks if task.done()] == []
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_workflow_is_pinged_and_summarised_and_can_be_committed(scene: Scene) -> None:
    async with running(scene.registry(), scene.server("a"), scene.server("b")):
        id_ = (await scene.admin.begin(expected_servers=("a", "b"))).workflow_id
        await scene.clock.skip(9 * SECOND)
        assert not (await scene.admin.get(id_)).complete
        await scene.clock.skip(2 * SECOND)

        gathered = await scene.admin.get(id_)
        assert (gathered.code, gathered.message) == (100, "{ totalCount: 9, errorCount: 0 }")
        assert sorted(await scene.pings(id_)) == sorted(
            (sender, str(number)) for sender in ("a", "b", REGISTRY_SERVER) for number in (1, 2, 3)
        )
        await scene.admin.commit(id_)
        assert (await scene.admin.get(id_)).code == 0


async def test_pings_are_a_while_apart(scene: Scene) -> None:
    async with running(scene.server("a")):
        id_ = (await scene.admin.begin()).workflow_id
        for count in (1, 2, 3, 3):
            await scene.clock.skip(timedelta(milliseconds=500))
            assert len(await scene.pings(id_)) == count
            await scene.clock.skip(timedelta(milliseconds=500))


async def test_silent_server_and_errors_make_the_summary_an_error(scene: Scene) -> None:
    async with running(scene.registry(), scene.server("a")):
        id_ = (await scene.admin.begin(expected_servers=("a", "b", "c"))).workflow_id
        await scene.admin.workflows.append_ping(id_, RETRY_NO_VC, 5, "disk full", sender="c")
        await scene.clock.skip(11 * SECOND)

        gathered = await scene.admin.get(id_)
        assert gathered.message == "{ totalCount: 7, errorCount: 1, missing: b }"
        assert gathered.state.summary.code == 1


async def test_participant_that_starts_again_sends_what_is_missing(scene: Scene) -> None:
    id_ = (await scene.admin.begin()).workflow_id
    for seconds in (0.5, 1, 1, 1):
        # Killed after each ping, in the middle of its pause.
        async with running(scene.server("a")):
            await scene.clock.skip(seconds * SECOND)

    assert await scene.pings(id_) == [("a", "1"), ("a", "2"), ("a", "3")]


async def test_registry_that_starts_again_summarises_at_the_same_time(scene: Scene) -> None:
    id_ = (await scene.admin.begin()).workflow_id
    async with running(scene.registry()):
        await scene.clock.skip(5 * SECOND)
    async with running(scene.registry()):
        await scene.clock.skip(4.9 * SECOND)
        assert not (await scene.admin.get(id_)).complete
        await scene.clock.skip(0.2 * SECOND)
        assert (await scene.admin.get(id_)).message == "{ totalCount: 3, errorCount: 0 }"


async def test_registry_that_was_away_for_long_summarises_at_once(scene: Scene) -> None:
    id_ = (await scene.admin.begin()).workflow_id
    await scene.clock.skip(60 * SECOND)
    async with running(scene.registry()):
        await scene.clock.skip(3.5 * SECOND)
        assert (await scene.admin.get(id_)).complete


async def test_clock_of_the_administrator_that_is_ahead_makes_the_window_no_longer(
    scene: Scene, world: World
) -> None:
    ahead = FakeClock()
    ahead.advance(timedelta(hours=1))
    id_ = (await Coordinator(world.other_journal(ahead), "reg", clock=ahead).begin()).workflow_id
    async with running(scene.registry()):
        await scene.clock.skip(13 * SECOND)
        assert (await scene.admin.get(id_)).complete


async def test_ping_that_comes_before_the_summary_is_counted_again(scene: Scene, world: World) -> None:
    id_ = (await scene.admin.begin()).workflow_id
    late = iter(range(2))

    async def ping(call: Call) -> None:
        if call.method == "multi" and "totalCount" in str(call.request) and next(late, None) is not None:
            await scene.admin.workflows.append_ping(id_, NO_VC, 1, "late", sender="late")

    world.faulty.before = ping
    async with running(scene.registry()):
        await scene.clock.skip(11 * SECOND)

    gathered = await scene.admin.get(id_)
    assert gathered.message == "{ totalCount: 5, errorCount: 2 }"
    assert sum("counting again" in line for line in scene.told) == 2


async def test_two_daemons_of_a_registry_do_no_harm(scene: Scene) -> None:
    async with running(scene.registry(), scene.registry(), scene.server("a"), scene.server("a")):
        ids = [(await scene.admin.begin()).workflow_id for _ in range(3)]
        await scene.clock.skip(12 * SECOND)

    for id_ in ids:
        assert (await scene.admin.get(id_)).message == "{ totalCount: 6, errorCount: 0 }"


@pytest.mark.parametrize("end", ["summary", "abort"])
async def test_server_quits_when_the_workflow_goes_on_without_it(scene: Scene, end: str) -> None:
    async with running(scene.server("a")):
        id_ = (await scene.admin.begin()).workflow_id
        await scene.clock.skip(0.5 * SECOND)
        if end == "summary":
            await scene.admin.workflows.post_summary(id_, NO_VC, 0, "enough")
        else:
            await scene.admin.workflows.abort_expired(id_, NO_VC)
        await scene.clock.skip(5 * SECOND)

        assert await scene.pings(id_) == [("a", "1")]


async def test_server_that_is_refused_quits_and_says_so(scene: Scene, world: World) -> None:
    begun = await scene.admin.begin()

    async def summarise(call: Call) -> None:
        if call.method == "multi" and "a ping" in str(call.request):
            world.faulty.before = None
            await scene.admin.workflows.post_summary(begun.workflow_id, NO_VC, 0, "enough")

    world.faulty.before = summarise
    async with running(scene.server("a")):
        await scene.clock.skip(5 * SECOND)

    (line,) = [line for line in scene.told if "quit" in line]
    assert line.startswith(f"workflow {begun.workflow_id}: quit: command conflicts with aggregate state")
    assert line.endswith("AppendPing of a workflow that is summarized")


@pytest.mark.parametrize("how", ["damaged", "hanging"])
async def test_workflow_that_is_stuck_holds_up_no_other(scene: Scene, world: World, how: str) -> None:
    stuck = (await scene.admin.begin()).workflow_id
    if how == "damaged":
        message = Message(event=Message.EV_SNAPSHOT_BEGIN)
        await world.other_journal(scene.clock).commit(stuck, [NewEvent.of(message)], NO_VC)
    else:

        async def hang(call: Call) -> None:
            if getattr(call.request, "key", "") == history_key(stuck):
                await asyncio.get_running_loop().create_future()

        world.faulty.before = hang
    async with running(scene.registry(), scene.server("a")):
        others = [(await scene.admin.begin()).workflow_id for _ in range(3)]
        await scene.clock.skip(12 * SECOND)

        for id_ in others:
            assert (await scene.admin.get(id_)).message == "{ totalCount: 6, errorCount: 0 }"


async def test_participants_outlive_a_store_that_is_away(scene: Scene, world: World) -> None:
    away = False

    async def fail(call: Call) -> None:
        if away:
            raise StoreUnavailableError("away")

    world.faulty.before = fail
    async with running(scene.registry(), scene.server("a")):
        first = (await scene.admin.begin()).workflow_id
        await scene.clock.skip(0.5 * SECOND)
        away = True
        second = (await scene.admin.begin()).workflow_id
        await scene.clock.skip(60 * SECOND)
        away = False
        await scene.clock.skip(60 * SECOND)

        for id_ in (first, second):
            assert (await scene.admin.get(id_)).message == "{ totalCount: 6, errorCount: 0 }"


@pytest.mark.parametrize("error", [StoreBrokenError("a commit died"), StoreClosedError("closed")], ids=type)
@pytest.mark.parametrize("who", ["registry", "server"])
async def test_store_that_will_not_come_back_ends_a_participant(
    scene: Scene, world: World, who: str, error: PersistenceError
) -> None:
    async def fail(call: Call) -> None:
        if call.write:
            raise error

    world.faulty.before = fail
    await scene.admin.begin()
    participant = scene.registry() if who == "registry" else scene.server("a")
    run = asyncio.create_task(participant.run())
    while not run.done():
        await scene.clock.skip(SECOND)

    with pytest.raises(ExceptionGroup) as caught:
        await run
    assert caught.group_contains(JournalError, match=str(error))


async def test_registry_completes_what_a_crash_has_left(scene: Scene, world: World) -> None:
    begin = Coordinator(world.journal(scene.clock), "reg", clock=scene.clock)
    world.faulty.cut_off_at(world.faulty.writes + 2, carried_out=True)
    with pytest.raises(Exception, match="cut off"):
        await begin.begin(UUID(int=5))
    world.faulty.reconnect()
    async with running(scene.registry(), scene.server("a")):
        await scene.clock.skip(15 * SECOND)

        assert (await scene.admin.get(UUID(int=5))).message == "{ totalCount: 6, errorCount: 0 }"


async def test_registry_gives_up_what_takes_too_long(scene: Scene) -> None:
    id_ = (await scene.admin.begin()).workflow_id
    scene.clock.advance(ACTIVE_FOR + SECOND)
    async with running(scene.registry()):
        await scene.clock.skip(SECOND)

        gathered = await scene.admin.get(id_)
        assert (gathered.code, gathered.state.state_code) == (EXPIRED, StateCode.TERMINATED)


async def test_registry_lets_the_feed_grow_for_a_month_only(scene: Scene, world: World) -> None:
    await scene.admin.begin()
    for _ in range(2):
        async with running(scene.registry()):
            await scene.clock.skip(SECOND)
        scene.clock.advance(timedelta(days=31))

    with pytest.raises(PositionTrimmedError):
        await world.other_journal(scene.clock).feed.read()


async def test_name_of_the_registry_is_not_that_of_a_server(scene: Scene) -> None:
    with pytest.raises(InvalidNameError):
        scene.server(REGISTRY_SERVER)
    with pytest.raises(InvalidNameError):
        await scene.admin.begin(expected_servers=(REGISTRY_SERVER,))


async def test_summary_of_no_pings_is_well_if_none_are_expected(scene: Scene) -> None:
    id_ = (await scene.admin.begin()).workflow_id

    assert summarized(await scene.admin.workflows.find(id_)) == (0, "{ totalCount: 0, errorCount: 0 }")
