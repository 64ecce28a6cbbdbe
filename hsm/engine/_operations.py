"""What can be done with an execution as a whole, whatever its machines are."""

from __future__ import annotations

from hsm.engine import _closing
from hsm.engine._executions import Executions
from hsm.engine._shards import Shards
from hsm.engine.options import EngineOptions
from hsm.ref import ExecutionKey
from persistence.store import EngineStore

__all__ = ["Operations"]


class Operations:
    """The part of an engine that is about executions as a whole."""

    _store: EngineStore
    _options: EngineOptions
    _executions: Executions
    _shards: Shards

    async def terminate(self, key: ExecutionKey, reason: str = "", *, request_id: str = "") -> None:
        """Close an execution by force, whatever its machines say.

        Its pending tasks do not run any more, and all later writes are refused; it can still be read. What
        runs at this moment goes on, and is refused what it writes. A request with an id that was carried out
        already does nothing.

        Raises:
            ExecutionClosedError: it is closed already.
            ExecutionNotFoundError: there is no such execution.
        """
        limit = self._options.delete_rows
        await _closing.terminate(self._executions, self._store, limit, key, reason, request_id)

    async def cancel(self, key: ExecutionKey, reason: str = "", *, request_id: str = "") -> None:
        """Ask an execution to end: a transition of its root, whose data is `Cancellable`.

        A request with an id that was carried out already does nothing.

        Raises:
            NotCancellableError: the data of the root has no `request_cancel`.
            ExecutionClosedError: it is closed already.
            ExecutionNotFoundError: there is no such execution.
        """
        await _closing.cancel(self._executions, key, reason, request_id)
