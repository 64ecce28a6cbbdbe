"""`hsm status`, `hsm show` and `hsm dead`: what a database holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from hsm.cli._database import open_reader
from hsm.cli._errors import CommandError
from hsm.engine import DeadLetter, ExecutionInfo, NodeInfo, PendingTask
from hsm.errors import ExecutionNotFoundError
from hsm.machine import Key
from hsm.ref import ExecutionKey
from hsm.task import ImmediateKind, OutboundKind, TaskKind

__all__ = ["dead", "show", "status"]


async def status(
    out: Console, url: str, registry: str | None, namespace: str, state: str | None, limit: int
) -> int:
    """Count the executions of a database by state; list those of one state, if it is given."""
    counts: Counter[tuple[str, str]] = Counter()
    unreadable: list[str] = []
    listed: list[ExecutionInfo] = []
    async with open_reader(url, registry) as engine:
        async for info in engine.list(namespace=namespace or None):
            if info.error:
                unreadable.append(info.error)
                continue
            counts[info.key.namespace, info.state] += 1
            if state is not None and info.state.casefold() == state.casefold() and len(listed) < limit:
                listed.append(info)
        letters = 0
        async for _ in engine.dead_letters():
            letters += 1
    if state is not None and not any(name.casefold() == state.casefold() for _, name in counts):
        known = ", ".join(sorted({name for _, name in counts})) or "none"
        raise CommandError(f"no execution is in state {state!r}; there are: {known}")
    table = _table("namespace", "state", "executions")
    for (name, in_state), count in sorted(counts.items()):
        table.add_row(escape(name), escape(in_state), str(count))
    out.print(table)
    out.print(f"{sum(counts.values())} executions, {letters} dead letters", highlight=False)
    for message in unreadable[:limit]:
        out.print(message, markup=False, highlight=False, soft_wrap=True, style="red")
    if state is not None:
        _print_listing(out, listed)
    return 0


def _print_listing(out: Console, listed: Sequence[ExecutionInfo]) -> None:
    table = _table("id", "state", "started", "closed")
    for info in listed:
        closed = "" if info.close_time is None else _time(info.close_time)
        table.add_row(escape(info.key.id), escape(info.state), _time(info.start_time), closed)
    out.print(table)


async def show(out: Console, url: str, registry: str | None, namespace: str, id_: str) -> int:
    """Draw the tree of one execution, with what each machine waits for."""
    async with open_reader(url, registry) as engine:
        try:
            execution = await engine.describe(ExecutionKey(namespace, id_))
        except ExecutionNotFoundError as error:
            raise CommandError(
                f"there is no execution {id_!r} in the namespace {namespace!r}; --namespace names another one"
            ) from error
    info = execution.info
    title = Text.assemble((info.key.id, "bold"), f"  {info.status.value}, started {_time(info.start_time)}")
    if info.close_time is not None:
        title.append(f", closed {_time(info.close_time)}")
    drawn: dict[tuple[Key, ...], Tree] = {}
    top = Tree(title)
    for node in execution.nodes:
        parent = drawn.get(node.path[:-1], top) if node.path else top
        branch = drawn[node.path] = parent.add(_node(node))
        for task in node.tasks:
            branch.add(_task(task))
    out.print(top)
    return 0


def _node(node: NodeInfo) -> Text:
    name = (
        node.machine_type.name if not node.path else f"{node.machine_type.name} {node.path[-1].id}".rstrip()
    )
    return Text.assemble(
        (name, "bold"),
        " ",
        (node.state or "-", "cyan"),
        f" after {node.transition_count} transitions\n{node.data}",
    )


def _task(task: PendingTask) -> Text:
    text = Text.assemble(("task ", "dim"), (task.name, "yellow"), f" {_kind(task.kind)}")
    if task.failures:
        text.append(f", {task.failures} attempts failed")
    if task.not_before is not None:
        text.append(f", next try {_time(task.not_before)}")
    if task.last_error:
        text.append(f", {task.last_error}", style="red")
    text.append(f"  {task.id}", style="dim")
    return text


def _kind(kind: TaskKind | None) -> str:
    if kind is None:
        return "-"
    if isinstance(kind, OutboundKind):
        return f"to {kind.destination}"
    if isinstance(kind, ImmediateKind):
        return "now"
    return f"at {_time(kind.deadline)}"


async def dead(out: Console, url: str, registry: str | None, replay: Sequence[str]) -> int:
    """List the dead letters, or put some of them back into their queues."""
    async with open_reader(url, registry) as engine:
        letters = [letter async for letter in engine.dead_letters()]
        if not replay:
            _print_dead(out, letters)
            return 0
        by_id = {letter.task_id: letter for letter in letters}
        unknown = [task_id for task_id in replay if task_id not in by_id]
        if unknown:
            raise CommandError(f"there is no dead letter {unknown[0]}; nothing was replayed")
        for task_id in dict.fromkeys(replay):
            await engine.replay(by_id[task_id])
            out.print(f"{task_id} is back in its queue", highlight=False, soft_wrap=True)
    out.print("the next run of the program that the database belongs to takes it up", highlight=False)
    return 0


def _print_dead(out: Console, letters: Sequence[DeadLetter]) -> None:
    for letter in letters:
        execution = "?" if letter.execution is None else f"{letter.execution.namespace}/{letter.execution.id}"
        what = "?" if letter.execution is None else letter.task_type
        text = Text.assemble(
            (letter.task_id, "bold"),
            f"  {what} {_kind(letter.kind)} of {execution},"
            f" {letter.attempts} attempts, {_time(letter.time)}\n    ",
            (letter.error, "red"),
        )
        out.print(text, soft_wrap=True)
    out.print(f"{len(letters)} dead letters", highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _time(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")
