"""Texts that no store can keep: each is refused by name, wherever it is said."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hsm import ExecutionKey, Ref, SerializationError
from hsm.engine import Children, Engine
from hsm.testing import TestEngine
from tests.support.databases import Database
from tests.support.jobs import Job, Lasting, Soon, World, ask, job, log, note, started

LONE = "\ud800"
"""Half of a character: what a file name or a log can hold, and no store can keep."""


@pytest.mark.parametrize(
    "say",
    [
        lambda engine: engine.start(ExecutionKey("tests", "other", LONE), Job()),
        lambda engine: engine.start(job("other"), Job(), request_id=LONE),
        lambda engine: engine.signal(Ref(job()), note("x"), request_id=LONE),
        lambda engine: engine.update(Ref(job()), ask(Lasting("x", destination=LONE))),
        lambda engine: engine.update(Ref(job()), lambda root: Children(root).start(LONE, Job())),
        lambda engine: engine.terminate(job(), LONE),
    ],
)
async def test_text_that_cannot_be_kept_is_refused_and_changes_nothing(
    world: World, database: Database, say: Callable[[Engine], Coroutine[Any, Any, object]]
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(SerializationError, match=r"\\ud800' cannot be kept"):
            await say(engine)
        await engine.update(ref, note("goes on", Soon("soon")))
        await engine.drain()
        assert await engine.read(ref, log) == ["goes on", "soon"]
        assert await engine.count() == 1
        await database.check()
