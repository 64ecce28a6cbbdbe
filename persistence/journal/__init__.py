"""Event journal: append-only histories with optimistic versions, on any transactional ordered store."""

from persistence.journal.clock import (
    Clock,
    SystemClock,
    TimerHandle,
)
from persistence.journal.codecs import (
    Codec,
    ZlibCodec,
)
from persistence.journal.errors import (
    CorruptHistoryError,
    EventCommitUnknownError,
    EventMismatchError,
    HistoryError,
    InvalidEventError,
    JournalError,
    ParentMismatchError,
    PositionTrimmedError,
    RetryNoVCError,
    StaleCursorError,
    TranscodingError,
    TrimmedError,
    UnknownEventError,
    UnknownHistoryError,
    VersionConflictError,
)
from persistence.journal.events import (
    Committed,
    Event,
    NewEvent,
    Serializable,
)
from persistence.journal.feed import (
    Feed,
    FeedItem,
    FeedKind,
)
from persistence.journal.ids import (
    EPOCH,
    EventId,
    EventIdSource,
)
from persistence.journal.journal import (
    TRIES,
    Journal,
    JournalOptions,
)
from persistence.journal.notifier import (
    Notifier,
    Subscription,
)
from persistence.journal.observer import (
    JournalObserver,
)
from persistence.journal.projections import (
    Handler,
    Output,
    Projection,
    ProjectionOptions,
)
from persistence.journal.retention import (
    CollectReport,
    Retention,
    RetentionOptions,
    TrimPolicy,
    TrimReport,
)
from persistence.journal.snapshots import (
    Snapshot,
    Snapshots,
)
from persistence.journal.versions import (
    NO_VC,
    RETRY_NO_VC,
    Expectation,
    VersionControl,
)

__all__ = [
    "EPOCH",
    "NO_VC",
    "RETRY_NO_VC",
    "TRIES",
    "Clock",
    "Codec",
    "CollectReport",
    "Committed",
    "CorruptHistoryError",
    "Event",
    "EventCommitUnknownError",
    "EventId",
    "EventIdSource",
    "EventMismatchError",
    "Expectation",
    "Feed",
    "FeedItem",
    "FeedKind",
    "Handler",
    "HistoryError",
    "InvalidEventError",
    "Journal",
    "JournalError",
    "JournalObserver",
    "JournalOptions",
    "NewEvent",
    "Notifier",
    "Output",
    "ParentMismatchError",
    "PositionTrimmedError",
    "Projection",
    "ProjectionOptions",
    "Retention",
    "RetentionOptions",
    "RetryNoVCError",
    "Serializable",
    "Snapshot",
    "Snapshots",
    "StaleCursorError",
    "Subscription",
    "SystemClock",
    "TimerHandle",
    "TranscodingError",
    "TrimPolicy",
    "TrimReport",
    "TrimmedError",
    "UnknownEventError",
    "UnknownHistoryError",
    "VersionConflictError",
    "VersionControl",
    "ZlibCodec",
]
