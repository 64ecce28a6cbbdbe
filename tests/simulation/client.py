"""A client of one process: asks its engine for one thing after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

from hsm import ExecutionKey, Node, Ref
from hsm.engine import ClosePolicy, ConflictPolicy, ReusePolicy, method
from hsm.executor import AccessType
from hsm.machine import MachineType
from tests.simulation.asking import Asking, PlannedError
from tests.simulation.ledger import ROOT, Ledger, append, child_key, hire, lines_of, plan
from tests.simulation.records import Outcome
from tests.simulation.world import NAMESPACE

__all__ = ["Client"]

_ROOT: Final = MachineType(ROOT, "root")


@method(int)
def tell(root: Node, mark: str) -> int:
    """Write a line, and say which one it is."""
    append(f"did {mark} {{}} -")(root)
    return len(root.data(Ledger).lines) - 1


class Client(Asking):
    """Works on some executions through one engine."""

    async def work(self, requests: int) -> None:
        """Ask for so many things."""
        chance = self._chance
        choices: list[Callable[[], Awaitable[None]]] = [
            *[self._update] * 10,
            self._update_in_block,
            *[self._read] * 3,
            *[self._start] * 3,
            *[self._update_with_start] * 2,
            *[self._pause] * 2,
            *[self._resume] * 3,
            self._cancel,
            *[self._signal] * 2,
            *[self._call] * 2,
            self._terminate,
            self._delete,
            *[self._refresh] * 2,
            *[self._hire] * 3,
            self._with_child,
            self._close,
            self._wait,
            self._replay,
            self._count_open,
        ]
        for number in range(requests):
            await asyncio.sleep(chance.choice([0, 0, 0.005, 0.1, 1, 4]))
            await (self._start if not number else chance.choice(choices))()

    # Requests

    async def _start(self) -> None:
        mark = self._mark()
        record = self._records.begin("start", mark)
        chance = self._chance
        conflict = chance.choice(
            [ConflictPolicy.FAIL, ConflictPolicy.USE_EXISTING, ConflictPolicy.TERMINATE_EXISTING]
        )
        if conflict is ConflictPolicy.TERMINATE_EXISTING and chance.random() < 0.7:
            conflict = ConflictPolicy.FAIL
        reuse = chance.choice(list(ReusePolicy))
        tasks = [self._world.new_task(f"t{mark}.{number}") for number in range(chance.choice([0, 1, 2]))]
        key, history = self._key(), chance.random() < 0.2
        added = chance.choice(["", "x"])

        def first(root: Node) -> None:
            append(f"did {mark}s {{}} {f'+{added}' if added else '-'}", *tasks)(root)
            if added:
                child = root.add_child(child_key(added), Ledger([f"born {mark}"]))
                append(f"did {mark}s {{}} -")(child)

        for _ in range(3):
            ref = await self._ask(
                record,
                self._engine.start(
                    key,
                    Ledger([f"start {mark}"]),
                    machine_type=_ROOT,
                    request_id=mark,
                    on_start=first,
                    conflict=conflict,
                    reuse=reuse,
                    history=history,
                ),
            )
            if ref is not None:
                record.run = ref.execution.run_id
            if self._is_settled(record):
                return

    async def _update(self) -> None:
        chance = self._chance
        mark = self._mark()
        record = self._records.begin("update", mark)
        kind = chance.choice(
            ["plain", "plain", "ask", "ask", "ask", "child", "child", "add", "add", "drop", "end", "fail"]
        )
        name = chance.choice(["x", "y", "x/z"])
        tasks = [self._world.new_task(f"t{mark}.{number}") for number in range(chance.choice([1, 1, 2]))]
        if kind == "plain":
            tasks = []

        def change(root: Node) -> str:
            run = root.data(Ledger).lines[0]
            path = _path(name)
            if kind == "child":
                append(f"did {mark} {{}} {name}")(root)
                append(f"did {mark} {{}} -", *tasks)(root.child(path))
            elif kind == "add":
                root.child(path[:-1]).add_child(path[-1], Ledger([f"born {mark}"]))
                append(f"did {mark} {{}} +{name}")(root)
                append(f"did {mark} {{}} -", *tasks)(root.child(path))
            elif kind == "drop":
                root.child(path[:-1]).delete_child(path[-1])
                append(f"did {mark} {{}} !{name}", *tasks)(root)
            elif kind == "end":
                append(f"did {mark} {{}} ~{name}")(root)
                append("end")(root.child(path))
            else:
                append(f"did {mark} {{}} -", *tasks)(root)
            if kind == "fail":
                raise PlannedError
            return run

        await self._ask(record, self._engine.update(Ref(self._key()), change))

    async def _update_in_block(self) -> None:
        mark = self._mark()
        record = self._records.begin("update", mark)
        key = self._key()
        pause = self._chance.choice([0, 0.01, 1])
        task = self._world.new_task(f"t{mark}.0")

        async def block() -> None:
            async with self._engine.access(Ref(key), AccessType.WRITE) as root:
                append(f"did {mark} {{}} -", task)(root)
                await asyncio.sleep(pause)

        await self._ask(record, block())

    async def _read(self) -> None:
        key = self._key()
        record = self._records.begin("read", self._mark())
        lines = await self._ask(record, self._engine.read(Ref(key), lines_of))
        if lines is not None:
            self._records.reads.append((record.began, tuple(lines)))

    async def _update_with_start(self) -> None:
        mark = self._mark()
        record = self._records.begin("update", mark)
        key = self._key()
        for _ in range(3):
            await self._ask(
                record,
                self._engine.update_with_start(
                    key,
                    Ledger([f"start {mark}"]),
                    append(f"did {mark} {{}} -"),
                    machine_type=_ROOT,
                    request_id=mark,
                    reuse=self._chance.choice(list(ReusePolicy)),
                ),
            )
            if self._is_settled(record):
                return

    async def _pause(self) -> None:
        if self._chance.random() < 0.3:
            await self._on_current("pause machine", lambda key, _: self._engine.pause(key, _path("x")))
            return
        # Of the root, so that its executors can be asked whether they may run.
        record = await self._on_current("pause", lambda key, _: self._engine.pause(key))
        if record is None or record.outcome is not Outcome.DONE:
            return
        others = [other for other in self._records.all if other.kind == "resume" and other.run == record.run]
        # A resume that is not over, or that began meanwhile, may have come later.
        alone = all(other.outcome is not Outcome.OPEN and other.ended < record.began for other in others)
        if alone and self._world.clock.time_ns() > self._process.slow_until:
            self._world.paused.setdefault(self._process, {})[record.run] = self._world.now()

    async def _resume(self) -> None:
        def ask(key: ExecutionKey, _: str) -> Awaitable[None]:
            for runs in self._world.paused.values():
                runs.pop(key.run_id, None)
            return self._engine.resume(key)

        await self._on_current("resume", ask)

    async def _cancel(self) -> None:
        ref = await self._current()
        if ref is None:
            return
        mark = self._mark()
        record = self._records.begin("update", mark, ref.execution.run_id)
        for _ in range(3):
            await self._ask(record, self._engine.cancel(ref.execution, mark, request_id=mark))
            if self._is_settled(record):
                return

    async def _signal(self) -> None:
        ref = await self._current()
        if ref is None:
            return
        mark = self._mark()
        record = self._records.begin("update", mark, ref.execution.run_id)
        task = self._world.new_task(f"t{mark}.0")
        for _ in range(3):
            change = append(f"did {mark} {{}} -", task)
            await self._ask(record, self._engine.signal(ref, change, request_id=mark))
            if self._is_settled(record):
                return

    async def _call(self) -> None:
        ref = await self._current()
        if ref is None:
            return
        mark = self._mark()
        record = self._records.begin("update", mark, ref.execution.run_id)
        for _ in range(3):
            answer = await self._ask(record, self._engine.call(ref, tell(mark), request_id=mark))
            if answer is not None:
                self._records.answers.append((mark, answer))
            if self._is_settled(record):
                return

    async def _terminate(self) -> None:
        await self._on_current("terminate", lambda key, mark: self._engine.terminate(key, request_id=mark))

    async def _delete(self) -> None:
        force = self._chance.random() < 0.5
        kind = "delete by force" if force else "delete"
        await self._on_current(kind, lambda key, _: self._engine.delete(key, force=force))

    async def _refresh(self) -> None:
        await self._on_current("refresh", lambda key, _: self._engine.refresh(key))

    async def _hire(self) -> None:
        """Let an execution start a child of its own."""
        chance = self._chance
        mark = self._mark()
        record = self._records.begin("update", mark)
        owner = chance.choice(["", "", "x"])
        tasks = [
            self._world.new_task(f"t{mark}.{number}", finishes=chance.random() < 0.4)
            for number in range(chance.choice([0, 1, 2]))
        ]
        child = Ledger([f"start {mark}", *map(plan, tasks)])
        policy = chance.choice(list(ClosePolicy))
        name = ExecutionKey("", chance.choice(["", "", "kid"]))

        def change(root: Node) -> None:
            append(f"did {mark} {{}} {owner or '-'}")(root)
            node = root
            if owner:
                node = root.child(_path(owner))
                append(f"did {mark} {{}} -")(node)
            hire(mark, child, policy, name)(node)

        await self._ask(record, self._engine.update(Ref(self._key()), change))

    async def _with_child(self) -> None:
        """Do something to a child execution behind the back of its parent."""
        ref = await self._current()
        if ref is None:
            return
        children = await self._told(self._engine.children(ref.execution)) or ()
        keys = [info.child.execution for info in children if info.child.execution.run_id]
        if not keys:
            return
        key = self._chance.choice(keys)
        kind = self._chance.choice(["terminate", "delete", "delete by force", "pause child", "refresh"])
        mark = self._mark()
        asked: dict[str, Callable[[], Awaitable[None]]] = {
            "terminate": lambda: self._engine.terminate(key, request_id=mark),
            "delete": lambda: self._engine.delete(key),
            "delete by force": lambda: self._engine.delete(key, force=True),
            "pause child": lambda: self._engine.pause(key),
            "refresh": lambda: self._engine.refresh(key),
        }
        await self._ask(self._records.begin(kind, mark, key.run_id), asked[kind]())

    async def _close(self) -> None:
        mark = self._mark()
        record = self._records.begin("update", mark)

        def change(root: Node) -> None:
            append(f"did {mark} {{}} -")(root)

            def close(ledger: Ledger) -> None:
                ledger.closed = True

            root.transition(Ledger, close)

        await self._ask(record, self._engine.update(Ref(self._key()), change))

    async def _wait(self) -> None:
        key = self._key()
        wanted = self._chance.randrange(2, 6)
        record = self._records.begin("wait", self._mark())

        def until(node: Node) -> bool:
            return len(node.data(Ledger).lines) >= wanted

        ref = await self._ask(record, self._engine.wait(Ref(key), until, timeout=timedelta(seconds=5)))
        if ref is not None and not ref.execution.run_id:
            self._world.wrong.append("wait has returned a reference without a run")

    async def _replay(self) -> None:
        record = self._records.begin("replay", self._mark())

        async def replay() -> None:
            letters = [letter async for letter in self._engine.dead_letters()]
            if letters:
                letter = self._chance.choice(letters)
                self._records.replayed.add(letter.task_id)
                await self._engine.replay(letter)

        await self._ask(record, replay())

    async def _count_open(self) -> None:
        record = self._records.begin("count", self._mark())
        await self._ask(record, self._engine.count(namespace=NAMESPACE))


def _path(name: str) -> tuple[Any, ...]:
    return tuple(child_key(part) for part in name.split("/"))
