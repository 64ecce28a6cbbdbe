"""The bell: whoever leaves a task in a shard of another process tells it so, where the store can watch.

It only saves time. A ring that is lost is made up for by the poll of the shard's owner.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Final, TypeAlias

from hsm.engine._logs import engine_logger
from persistence.errors import PersistenceError
from persistence.executions import SETTINGS_PARTITION, bell_key, shard_of_bell
from persistence.features import require
from persistence.store import ChangeKind, EngineStore, Feature, SetRequest, WatchableStore

__all__ = ["Bell"]

_log: Final = engine_logger()
_OWNERS: Final = "s/"
_Work: TypeAlias = Callable[[], Coroutine[None, None, None]]


class Bell:
    """Rings for shards, and hears the rings of others.

    Attributes:
        audible: whether the store can be watched; where it cannot, nothing is rung.
    """

    def __init__(
        self, store: EngineStore, spawn: Callable[[_Work], None], *, partition: str = SETTINGS_PARTITION
    ) -> None:
        self._store = store
        self._partition = partition
        self.audible: bool = Feature.WATCH in store.features
        self._pending: set[int] = set()
        self._ringing = False
        self._spawn = spawn

    def ring(self, shard: int) -> None:
        """Tell the owner of a shard that there is something new; rings that come close together are one."""
        if not self.audible:
            return
        self._pending.add(shard)
        if not self._ringing:
            self._ringing = True
            self._spawn(self._ring)

    async def _ring(self) -> None:
        try:
            while self._pending:
                shards, self._pending = self._pending, set()
                keys = map(bell_key, shards)
                rings = [SetRequest(partition=self._partition, key=key, value=b"") for key in keys]
                await self._store.multi(rings)
        except PersistenceError as error:
            _log.debug("nobody was told of new tasks, which are found all the same: %s", error)
        finally:
            self._ringing = False

    async def listen(self, rung: Callable[[int | None], None], owners: Callable[[], None]) -> None:
        """Call `rung` for each ring (None: of any shard), and `owners` when a shard changes hands."""
        store = require(self._store, WatchableStore)
        async for change in store.watch(self._partition, ""):
            if change.kind is ChangeKind.RESYNC:
                rung(None)
                owners()
            elif change.key.startswith(_OWNERS):
                owners()
            elif (shard := shard_of_bell(change.key)) is not None:
                rung(shard)
