"""The index: which workflows of a registry are active, and which are completed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, assert_never
from uuid import UUID

import attrs

from hsm.aggregate.behavior import Event, State as AggregateState
from hsm.components.ping_registry._wire import decode_index_fact, encode_index_fact
from hsm.components.ping_registry.commands import (
    BeginWorkflow,
    CommitWorkflow,
    DeleteWorkflow,
    IndexCommand,
    Snapshot,
)
from hsm.components.ping_registry.errors import (
    InvalidCommandError,
    SmallStorageReductionError,
    TooManyWorkflowsError,
    UnknownWorkflowError,
)
from hsm.components.ping_registry.events import (
    IndexedWorkflow,
    IndexFact,
    SnapshotBegan,
    SnapshotEnded,
    SnapshotTaken,
    WorkflowCompleted,
    WorkflowDeleted,
    WorkflowStarted,
)
from persistence.journal import Event as JournalEvent, EventId
from persistence.proto.nogevents_pb2 import Event as Message

__all__ = [
    "INDEX_HISTORY",
    "MAX_SNAPSHOT_WORKFLOWS",
    "MIN_EVENTS_BETWEEN_SNAPSHOTS",
    "IndexAdvancer",
    "IndexBehavior",
    "IndexState",
    "IndexTrimPolicy",
]

INDEX_HISTORY: Final = "workflow-index"
"""The type of the histories of indexes."""

MIN_EVENTS_BETWEEN_SNAPSHOTS: Final = 1000
MAX_SNAPSHOT_WORKFLOWS: Final = 200

# What storage costs, in events: a snapshot of n workflows costs as much as 300 + 300 n events.
_SNAPSHOT_BASE_COST: Final = 300
_SNAPSHOT_WORKFLOW_COST: Final = 300

_TAIL_AGE: Final = timedelta(days=30)
_NOTHING: Final[tuple[IndexFact, ...]] = ()
_EMPTY: Final[Mapping[UUID, IndexedWorkflow]] = MappingProxyType({})


@attrs.frozen
class IndexState(AggregateState):
    """The list of a registry's workflows.

    Attributes:
        active: workflows that are under way, by id.
        completed: workflows that are completed and not deleted yet, by id.
        last_committed: the workflow that was completed last, if none was begun since.
        events_since_snapshot: events that a reader has to read after the last snapshot, or in all.
    """

    active: Mapping[UUID, IndexedWorkflow] = attrs.field(default=_EMPTY, hash=False)
    completed: Mapping[UUID, IndexedWorkflow] = attrs.field(default=_EMPTY, hash=False)
    last_committed: UUID | None = None
    events_since_snapshot: int = 0


class IndexAdvancer:
    """Moves an index on, event by event; copies each of its lists when it first changes it."""

    def __init__(self) -> None:
        self._active: dict[UUID, IndexedWorkflow] | None = None
        self._completed: dict[UUID, IndexedWorkflow] | None = None

    def advance(self, state: IndexState, event: Event[IndexFact]) -> IndexState:
        """The state after the event."""
        count = state.events_since_snapshot + 1
        last = state.last_committed
        match event.data:
            case WorkflowStarted(id_, event_id):
                last = None
                self._own_active(state)[id_] = IndexedWorkflow(id_, event_id)
            case WorkflowCompleted(id_, event_id):
                last = id_
                started = self._own_active(state).pop(id_, None)
                began = event_id if started is None else started.started
                self._own_completed(state)[id_] = IndexedWorkflow(id_, began, event_id)
            case WorkflowDeleted(id_):
                self._own_completed(state).pop(id_, None)
            case SnapshotBegan():
                self._active, self._completed, last = {}, {}, None
            case SnapshotTaken(workflows, last):
                for workflow in workflows:
                    known = (
                        self._own_active(state) if workflow.completed is None else self._own_completed(state)
                    )
                    known[workflow.workflow_id] = workflow
            case SnapshotEnded():
                count = 0
            case _:
                assert_never(event.data)
        return attrs.evolve(
            state,
            active=state.active if self._active is None else self._active,
            completed=state.completed if self._completed is None else self._completed,
            last_committed=last,
            events_since_snapshot=count,
        )

    def _own_active(self, state: IndexState) -> dict[UUID, IndexedWorkflow]:
        if self._active is None:
            self._active = dict(state.active)
        return self._active

    def _own_completed(self, state: IndexState) -> dict[UUID, IndexedWorkflow]:
        if self._completed is None:
            self._completed = dict(state.completed)
        return self._completed


class IndexBehavior:
    """What the commands of an index come to.

    Semantics: nog `wfindexes` (2019). Besides, what is completed can be begun and completed again without
    an event, also in an index that was rebuilt from a snapshot.
    """

    history_type = INDEX_HISTORY

    def new_event(self, message: Message) -> IndexFact:
        """The fact of an event.

        Raises:
            EventTypeError: it is no event of an index.
        """
        return decode_index_fact(message)

    def new_message(self, fact: IndexFact) -> Message:
        """The event of a fact."""
        return encode_index_fact(fact)

    def new_state(self, id_: UUID, /) -> IndexState:
        """An empty index."""
        return IndexState(id_)

    def new_advancer(self) -> IndexAdvancer:
        """See `IndexAdvancer`."""
        return IndexAdvancer()

    def tell(self, state: IndexState, command: IndexCommand) -> Sequence[IndexFact]:
        """What the command comes to; nothing if it was carried out already.

        Raises:
            UnknownWorkflowError: the workflow is not listed in the state that the command needs.
            TooManyWorkflowsError: a snapshot of the index would be too large.
            SmallStorageReductionError: a snapshot would save too little.
            InvalidCommandError: the command is none of an index.
        """
        match command:
            case BeginWorkflow(id_, event_id):
                if id_ in state.active or id_ in state.completed:
                    return _NOTHING
                return (WorkflowStarted(id_, event_id),)
            case CommitWorkflow(id_, event_id):
                if id_ in state.completed or id_ == state.last_committed:
                    return _NOTHING
                if id_ not in state.active:
                    raise UnknownWorkflowError(id_)
                return (WorkflowCompleted(id_, event_id),)
            case DeleteWorkflow(id_):
                if id_ not in state.completed:
                    raise UnknownWorkflowError(id_)
                return (WorkflowDeleted(id_),)
            case Snapshot():
                return _snapshot(state, if_storage_reduction=command.if_storage_reduction)
            case _:
                raise InvalidCommandError(f"{command!r} is no command of a workflow index")


class IndexTrimPolicy:
    """Lets the history of an index begin with a snapshot, and forget what is before after 30 days.

    For `persistence.journal.Retention`, under `INDEX_HISTORY`. Semantics: nog `wfindexes.TrimPolicy` (2019).
    """

    def is_new_epoch(self, last: JournalEvent, following: JournalEvent | None, now: datetime) -> bool:  # noqa: ARG002  the time does not matter
        """Whether what follows is a snapshot."""
        return following is not None and following.message().event == Message.EV_SNAPSHOT_BEGIN

    def is_new_tail(self, epoch: EventId, set_at: datetime, now: datetime) -> bool:  # noqa: ARG002  nor does the event
        """Whether the epoch has stood for 30 days."""
        return now - set_at > _TAIL_AGE


def _snapshot(state: IndexState, *, if_storage_reduction: bool) -> Sequence[IndexFact]:
    events = state.events_since_snapshot
    if events == 0:
        return _NOTHING
    workflows = [*state.active.values(), *state.completed.values()]
    if len(workflows) > MAX_SNAPSHOT_WORKFLOWS:
        raise TooManyWorkflowsError(
            f"the index lists {len(workflows)} workflows, and a snapshot holds {MAX_SNAPSHOT_WORKFLOWS}"
        )
    if if_storage_reduction:
        cost = _SNAPSHOT_BASE_COST + _SNAPSHOT_WORKFLOW_COST * len(workflows)
        if events < MIN_EVENTS_BETWEEN_SNAPSHOTS or cost >= events:
            raise SmallStorageReductionError(
                f"a snapshot costs {cost}, and {events} events since the last one cost little more"
            )
    workflows.sort(key=lambda workflow: workflow.started)
    last = state.last_committed
    taken = (SnapshotTaken(tuple(workflows), last),) if workflows or last else ()
    return (SnapshotBegan(), *taken, SnapshotEnded())
