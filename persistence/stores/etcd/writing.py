"""Writing: a batch of transactions, spread over as few of etcd's own as can hold them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Final

from persistence.batcher import Result
from persistence.decision import Slot, Transaction, mismatch
from persistence.stores.etcd.capacity import Capacity
from persistence.stores.etcd.client import Client
from persistence.stores.etcd.committing import Committer
from persistence.stores.etcd.keys import Keyspace
from persistence.stores.etcd.leases import Leases
from persistence.stores.etcd.planning import plan
from persistence.stores.etcd.reading import Reader

__all__ = ["Writer"]

_PARALLEL: Final = 4
"""Requests of a batch that are under way at the same time, where one cannot hold it."""


class Writer:
    """Carries out the batches of a lane, one at a time."""

    def __init__(
        self, client: Client, keyspace: Keyspace, capacity: Capacity, reader: Reader, leases: Leases
    ) -> None:
        self._client = client
        self._prefix_bytes = len(keyspace.prefix)
        self._capacity = capacity
        self._committers = [Committer(client, keyspace, capacity, reader, leases) for _ in range(_PARALLEL)]

    async def commit(self, batch: Sequence[Transaction]) -> Sequence[Result]:
        """Carry out a batch; an answer for each of its transactions.

        One that wants to write what another one of the batch checks or writes, or to check what another
        one writes, waits for the outcome of that one, which may be all it needs to know.

        Raises:
            StoreCorruptError: the cluster says that its data are damaged, or what it holds is not ours.
        """
        results: dict[int, Result] = {}
        known: dict[Slot, str | None] = {}
        waiting: Sequence[int] = range(len(batch))
        until = asyncio.get_running_loop().time() + self._client.request_seconds
        while waiting:
            now, deferred = plan(
                batch, waiting, self._capacity, prefix_bytes=self._prefix_bytes, most=_PARALLEL
            )
            works = [
                committer.carry_out([batch[index] for index in indexes], until)
                for committer, indexes in zip(self._committers, now, strict=False)
            ]
            # A task for each costs a lone transaction more than its conditions do.
            outcomes = [await works[0]] if len(works) == 1 else await asyncio.gather(*works)
            again: list[int] = []
            for indexes, outcome in zip(now, outcomes, strict=True):
                if outcome is None:
                    again += indexes
                    continue
                results.update(zip(indexes, outcome.results, strict=True))
                known.update(outcome.found)
                if outcome.unavailable is not None:
                    # Those that wait would fail in the same way, each after a time-out of its own.
                    results.update(dict.fromkeys(deferred, outcome.unavailable))
                    deferred = []
            waiting = sorted([*again, *_undecided(batch, deferred, known, results)])
        return [results[index] for index in range(len(batch))]

    async def aclose(self) -> None:
        """Leave nothing behind."""
        await asyncio.gather(*(committer.aclose() for committer in self._committers))


def _undecided(
    batch: Sequence[Transaction],
    deferred: Iterable[int],
    known: dict[Slot, str | None],
    results: MutableMapping[int, Result],
) -> Iterable[int]:
    """Those of the deferred whose conditions may hold; the others are refused.

    They were under way while what is known was true, and one condition that did not hold is enough.
    """
    for index in deferred:
        for slot, expected in batch[index].conditions:
            if slot in known and known[slot] != expected:
                results[index] = mismatch(slot, expected, known[slot])
                break
        else:
            yield index
