"""Two clusters for tests: a database and an engine each, and what one tells the other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs

from hsm import (
    ExecutionKey,
    Ref,
    ResendError,
    VersionedTransition,
)
from hsm.engine import Cluster
from hsm.errors import ExecutionNotFoundError
from hsm.testing import TestEngine
from hsm.tree import MergeResult
from persistence.proto.replication_pb2 import Delta
from tests.support.databases import Database
from tests.support.jobs import (
    Step,
    job,
    step,
)

HOUR = timedelta(hours=1)
RETENTION = 24 * HOUR
EAST = Cluster(id=1, peers=(2,), step=10)
WEST = Cluster(id=2, peers=(1,), step=10)
V = VersionedTransition


@attrs.define
class Side:
    """One cluster: its database and its engine."""

    database: Database
    engine: TestEngine


@attrs.define
class Two:
    """Two clusters, and a link in each direction."""

    east: Side
    west: Side

    async def tell(self, source: Side, target: Side, key: ExecutionKey | None = None) -> MergeResult:
        """Tell of an execution what the target lacks."""
        key = key or job()
        try:
            since = (await target.engine.versions(key))[-1]
        except ExecutionNotFoundError:
            since = V()
        delta = await source.engine.changes_since(key, since)
        try:
            return await target.engine.apply_delta(Delta.FromString(delta.SerializeToString()))
        except ResendError as error:
            return await target.engine.apply_delta(await source.engine.changes_since(key, error.since))

    async def to_west(self) -> MergeResult:
        return await self.tell(self.east, self.west)

    async def to_east(self) -> MergeResult:
        return await self.tell(self.west, self.east)

    async def check_same(self, key: ExecutionKey | None = None) -> None:
        """Both have the same tree, in the same order, and wait for the same tasks."""
        assert await state(self.east, key or job()) == await state(self.west, key or job())


async def state(side: Side, key: ExecutionKey) -> object:
    """All that is to be the same in both clusters."""
    engine = side.engine
    tree = await engine.describe(key)
    row = await engine.changes_since(key)
    del row.row.tombstones[:]
    row.row.ClearField("tombstones_from")
    order = await engine.read(Ref(key), lambda root: [node.path for node in root.walk()])
    return tree.info, [attrs.evolve(node, tasks=()) for node in tree.nodes], order, row


def add(*ids: str) -> Any:
    def build(node: Any) -> None:
        for id_ in ids:
            node.add_child(step(id_), Step())

    return build


def child(*ids: str) -> Ref:
    return Ref(job(), tuple(step(id_) for id_ in ids))
