"""Clusters: several databases that hold the same executions, each execution written to in one of them."""

from __future__ import annotations

import attrs

__all__ = ["Cluster"]


@attrs.frozen(kw_only=True)
class Cluster:
    """Which of several databases this is, as `EngineOptions.cluster`: the same for all engines on it.

    Every execution has a failover version, which names the cluster that writes to it and runs its tasks: the
    remainder of its division by `step` is the id of the cluster. In the others it is read only.

    Semantics: Temporal's failover versions, kept for each execution by itself.

    Attributes:
        id: from 1 to `step` - 1, another one for each cluster, and never given to a new one.
        peers: ids of the clusters that are told of what happens here, by a `Replicator` each.
        step: more clusters than there will ever be; the same everywhere and for ever.
        tombstones: deletions that each execution remembers. A cluster that lacks more of them gets all of the
            execution.
    """

    id: int
    peers: tuple[int, ...] = ()
    step: int = attrs.field(default=1000, validator=attrs.validators.ge(2))
    tombstones: int = attrs.field(default=64, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        for cluster in (self.id, *self.peers):
            if not 0 < cluster < self.step:
                raise ValueError(f"{cluster} is no id of a cluster: they go from 1 to {self.step - 1}")
        if self.id in self.peers:
            raise ValueError(f"cluster {self.id} is no peer of itself")

    def owns(self, failover_version: int) -> bool:
        """Whether an execution with this failover version is written to here; 0 is nobody's, or anybody's."""
        return not failover_version or failover_version % self.step == self.id

    def next_version(self, failover_version: int) -> int:
        """The first failover version of this cluster after another one."""
        return failover_version + 1 + (self.id - failover_version - 1) % self.step
