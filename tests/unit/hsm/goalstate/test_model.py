"""The engine against a model: whatever is asked of it in whatever order, it does what the model says."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import attrs
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hsm.errors import TerminalError
from hsm.goalstate import Action, Engine, Run
from hsm.testing import FakeClock
from tests.support.goals import SECOND, Light, steady

NAMES = ["a", "b", "c", "d"]
WORKERS = 2
PAUSE = 4
LONGEST = 10


@attrs.define
class Model:
    """What is to be expected of one entity; times in seconds since the start."""

    due: int | None = None
    order: int = 0
    running: bool = False
    began_due: int = 0
    again: int | None = None
    deleted: bool = False
    failures: int = 0
    dead: bool = False


class EngineModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.origin = self.clock.now()
        self.engine = Engine(
            steady(
                self.clock,
                workers=WORKERS,
                run_timeout=None,
                failure_retry_delay=PAUSE * SECOND,
                maximum_retry_delay=LONGEST * SECOND,
            )
        )
        self.models: dict[str, Model] = {}
        self.outcomes: dict[str, asyncio.Future[BaseException | None]] = {}
        self.started = False
        self.now = 0
        self.count = 0

    def teardown(self) -> None:
        self.runner.run(self.engine.stop(drain=False))
        self.runner.close()

    # What happens

    @rule(name=st.sampled_from(NAMES), offset=st.integers(-3, 12), replace=st.booleans())
    def enqueue(self, name: str, offset: int, replace: bool) -> None:
        due = self.now + offset
        light = Light(name, todo=[Action("wait", self._wait)])
        self.do(self._call(lambda: self.engine.enqueue(light, self.origin + due * SECOND, replace=replace)))
        model = self.models.setdefault(name, Model())
        if model.deleted or model.dead:
            model.deleted = model.dead = False
            model.failures = 0
        if model.running:
            model.again = due if replace or model.again is None else min(model.again, due)
        elif replace or model.due is None or due < model.due:
            self.put(model, due)
        self.pump()

    @rule(name=st.sampled_from(NAMES))
    def unschedule(self, name: str) -> None:
        self.engine.unschedule(name)
        if name in self.models:
            self.models[name].due = self.models[name].again = None

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.engine.delete(name)
        model = self.models.get(name)
        if model is not None and model.running:
            model.deleted, model.again = True, None
        else:
            self.models.pop(name, None)

    @rule(seconds=st.integers(1, 10))
    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.do(self.clock.skip(SECOND))
            self.pump()

    @precondition(lambda self: bool(self.outcomes))
    @rule(data=st.data(), how=st.sampled_from(["well", "fails", "dies"]))
    def end_run(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.outcomes)))
        errors = {"well": None, "fails": OSError("failed"), "dies": TerminalError("dead")}
        future = self.outcomes.pop(name)
        self.do(self._call(lambda: future.set_result(errors[how])))
        model = self.models[name]
        model.running = False
        if model.deleted:
            del self.models[name]
        else:
            due, model.again = model.again, None
            if how == "well":
                model.failures = 0
            elif how == "fails":
                model.failures += 1
                retry = self.now + min(PAUSE * 2 ** (model.failures - 1), LONGEST)
                due = retry if due is None else min(retry, due)
            elif due is None:
                model.dead = True
                model.failures += 1
            else:
                model.failures = 0
            if due is not None:
                self.put(model, due)
        self.pump()

    @precondition(lambda self: not self.started)
    @rule()
    def start(self) -> None:
        self.started = True
        self.do(self.engine.start())
        self.pump()

    @precondition(lambda self: self.started)
    @rule()
    def stop(self) -> None:
        self.started = False
        self.outcomes.clear()
        self.do(self.engine.stop(drain=False))
        # Runs are broken off in the order in which they began.
        running = sorted((m for m in self.models.values() if m.running), key=lambda model: model.order)
        for model in running:
            model.running = False
            due, model.again = model.again, None
            self.put(model, model.began_due if due is None else min(due, model.began_due))
        self.models = {name: model for name, model in self.models.items() if not model.deleted}

    # What has to hold

    @invariant()
    def agrees(self) -> None:
        engine = self.engine
        living = {name for name, model in self.models.items() if not model.deleted}
        assert engine.total == len(living)
        assert engine.in_flight == sum(model.running for model in self.models.values()) <= WORKERS
        assert {dead.id for dead in engine.dead()} == {
            name for name, model in self.models.items() if model.dead and not model.deleted
        }
        for name in NAMES:
            model = self.models.get(name, Model())
            due = model.again if model.running else model.due
            expected = None if due is None else self.origin + due * SECOND
            assert engine.deadline(name) == expected, name
            assert engine.is_scheduled(name) == (due is not None)
            assert engine.is_running(name) == model.running, name
            assert engine.failures(name) == model.failures, name

    # The model's own moves

    def put(self, model: Model, due: int) -> None:
        self.count += 1
        model.due, model.order = due, self.count

    def pump(self) -> None:
        while self.started and sum(model.running for model in self.models.values()) < WORKERS:
            waiting = [m for m in self.models.values() if m.due is not None and m.due <= self.now]
            if not waiting:
                return
            model = min(waiting, key=lambda model: (model.due, model.order))
            assert model.due is not None
            self.count += 1
            model.running, model.began_due, model.due, model.order = True, model.due, None, self.count

    async def _wait(self, light: Light, run: Run) -> None:
        future = self.outcomes[light.id] = asyncio.get_running_loop().create_future()
        error = await future
        if error is not None:
            raise error

    async def _call(self, function: object) -> None:
        assert callable(function)
        function()

    def do(self, work: object) -> None:
        async def settled() -> None:
            await work  # type: ignore[misc]  # one of the coroutines above
            await self.clock.skip(timedelta())

        self.runner.run(settled())


TestEngineModel = EngineModel.TestCase
TestEngineModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
