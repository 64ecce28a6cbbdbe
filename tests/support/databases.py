"""Databases for tests of the engine: opened many times, and looked into from outside."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import persistence
from hsm import ExecutionKey, Key
from hsm.engine._table import row_path
from persistence.executions import execution_key, node_prefix, prefix_end
from persistence.proto.execution_pb2 import ExecutionRow
from persistence.proto.hsm_pb2 import StateMachineNode
from persistence.store import DeleteRequest, EngineStore, Item, SetRequest

_names: Final = itertools.count()


class Database:
    """One set of data, behind any number of stores."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = AsyncExitStack()
        self.store: EngineStore

    async def __aenter__(self) -> Self:
        self.store = await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def open(self) -> EngineStore:
        """Another store on the data, as another process would have it."""
        store = await self._stack.enter_async_context(persistence.connect(self._url))
        return persistence.require(store, EngineStore)

    async def rows(self, prefix: str = "") -> list[tuple[str, Item]]:
        """Rows of all partitions whose key starts with `prefix`, with their partition."""
        found: list[tuple[str, Item]] = []
        for partition in ["exec", *(f"exec/{shard}" for shard in range(64))]:
            items = self.store.scan(partition, "", "")
            found += [(partition, item) async for item in items if item.key.startswith(prefix)]
        return found

    async def keys(self, *prefixes: str) -> list[str]:
        """Keys that start with one of the prefixes."""
        return [item.key for _, item in await self.rows() if item.key.startswith(prefixes)]

    async def queued(self) -> list[str]:
        """Keys of all queue rows."""
        return await self.keys("t/", "o/", "i/")

    async def overwrite(self, prefix: str, value: bytes) -> str:
        """Put garbage into the one row whose key starts with `prefix`; its key."""
        ((partition, item),) = await self.rows(prefix)
        await self.store.set(SetRequest(partition=partition, key=item.key, value=value))
        return item.key

    async def remove(self, key: str) -> None:
        """Delete a row behind the engine's back."""
        ((partition, item),) = await self.rows(key)
        await self.store.delete(DeleteRequest(partition=partition, key=item.key))

    async def check(self) -> None:
        """Nodes and queues agree: every pending task has one row, and every row its pending task."""
        rows = await self.rows()
        queue = {item.key.rpartition("/")[2] for _, item in rows if item.key[:2] in {"t/", "o/", "i/", "q/"}}
        dead = {item.key.removeprefix("d/") for _, item in rows if item.key.startswith("d/")}
        expected: set[str] = set()
        for _, item in rows:
            if item.key.startswith("n/"):
                expected |= {task.id for task in StateMachineNode.FromString(item.value).tasks}
            if item.key.startswith("e/"):
                expected |= {task.id for task in ExecutionRow.FromString(item.value).root.tasks}
        assert expected - queue - dead == set(), "tasks that nobody will run"
        assert queue - expected == set(), "queue rows that no machine knows"
        assert queue & dead == set(), "tasks both waiting and dead"

    async def tree(self, key: ExecutionKey) -> dict[tuple[Key, ...], StateMachineNode]:
        """The rows of one execution, by path; dead ones too."""
        prefix = node_prefix(*key)
        ((_, own),) = await self.rows(execution_key(*key))
        return {(): ExecutionRow.FromString(own.value).root} | {
            row_path(item.key[len(prefix) :]): StateMachineNode.FromString(item.value)
            for _, item in await self.rows()
            if prefix <= item.key < prefix_end(prefix)
        }


def new_database(kind: str, folder: Path) -> Database:
    """An empty database, in memory or in a file."""
    number = next(_names)
    return Database(
        f"memory://engine-{number}" if kind == "memory" else f"sqlite:///{folder / f'{number}.db'}"
    )
