"""Sagas: commands that touch several histories, written down first, so that a crash is not their end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import attrs

from hsm.aggregate.errors import SagaConflictError
from persistence.errors import ETagMismatchError
from persistence.executions import escape
from persistence.options import prefix_end
from persistence.store import ABSENT, CheckRequest, DeleteRequest, EngineStore, GetRequest, SetRequest

__all__ = ["Saga", "Sagas"]


@attrs.frozen
class Saga:
    """A command that was begun and has not ended.

    Attributes:
        id: of the saga.
        data: what is to be done, as its owner has written it.
    """

    id: str
    data: bytes


class Sagas:
    """The pending sagas of a namespace.

    A saga is recorded before the first of its steps and forgotten after the last. Its steps have to be
    repeatable: whoever finds it pending, the caller that asks again or a process that looks after it,
    carries all of them out once more, in order.
    """

    def __init__(self, store: EngineStore, namespace: str) -> None:
        """Keep sagas in the partition `saga/<namespace>` of an open store."""
        self._store = store
        self._partition = f"saga/{escape(namespace)}"

    async def record(self, saga: Saga) -> None:
        """Write a saga down; one that is there already, with the same data, stays.

        Raises:
            SagaConflictError: there is one with this id and other data.
        """
        absent = CheckRequest(self._partition, saga.id, ABSENT)
        write = SetRequest(partition=self._partition, key=saga.id, value=saga.data)
        try:
            await self._store.multi([absent, write])
        except ETagMismatchError:
            found = await self._store.get(GetRequest(partition=self._partition, key=saga.id))
            if found.data is not None and found.data != saga.data:
                raise SagaConflictError(f"saga {saga.id!r} is pending, with other arguments") from None
            if found.data is None:
                await self.record(saga)

    async def forget(self, saga: Saga) -> None:
        """Note that all steps were carried out. Another saga that has the id by now stays pending."""
        found = await self._store.get(GetRequest(partition=self._partition, key=saga.id))
        if found.data != saga.data:
            return
        with contextlib.suppress(ETagMismatchError):
            # Whoever else has carried it out may have forgotten it just now.
            await self._store.delete(DeleteRequest(partition=self._partition, key=saga.id, etag=found.etag))

    async def is_pending(self, saga: Saga) -> bool:
        """Whether a saga is still to be carried out, as far as its record tells."""
        found = await self._store.get(GetRequest(partition=self._partition, key=saga.id))
        return found.data == saga.data

    async def pending(self, prefix: str = "") -> AsyncIterator[Saga]:
        """The sagas whose id begins with `prefix`, in order of their ids."""
        async for item in self._store.scan(self._partition, prefix, prefix_end(prefix)):
            yield Saga(item.key, item.value)
