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
    "Committed",
    "CorruptHistoryError",
    "Event",
    "EventCommitUnknownError",
    "EventId",
    "EventIdSource",
    "EventMismatchError",
    "Expectation",
    "HistoryError",
    "InvalidEventError",
    "Journal",
    "JournalError",
    "JournalObserver",
    "JournalOptions",
    "NewEvent",
    "Notifier",
    "ParentMismatchError",
    "PositionTrimmedError",
    "RetryNoVCError",
    "Serializable",
    "StaleCursorError",
    "Subscription",
    "SystemClock",
    "TimerHandle",
    "TranscodingError",
    "TrimmedError",
    "UnknownEventError",
    "UnknownHistoryError",
    "VersionConflictError",
    "VersionControl",
    "ZlibCodec",
]
