"""What clients have done, and what they know of it: acknowledged, refused, or unknown."""

from __future__ import annotations

import enum

import attrs

__all__ = ["Outcome", "Record", "Records"]


class Outcome(enum.Enum):
    """What a client was told."""

    OPEN = "open"
    """Nothing: it was killed, or the store could not tell."""
    DONE = "done"
    REFUSED = "refused"


@attrs.define(eq=False)
class Record:
    """One request of a client.

    Attributes:
        kind: of request.
        mark: used once in a simulation; what the request writes.
        run: the run id that it was carried out on, or asked for; "" if nobody knows.
        began: when, in the order of all beginnings and ends.
        ended: when it was answered; 0 if it was not.
        outcome: what it was told.
        asked: how often it was asked for: another run knows nothing of the first time.
    """

    kind: str
    mark: str
    run: str
    began: int
    ended: int = 0
    outcome: Outcome = Outcome.OPEN
    asked: int = 0


class Records:
    """All requests, in the order in which they began.

    Attributes:
        all: the requests.
        reads: when each began, and the lines that it has seen.
        replayed: ids of tasks that were dead letters, and may have become pointless meanwhile.
        answers: of calls: a mark, and which line it is.
    """

    def __init__(self) -> None:
        self.all: list[Record] = []
        self.reads: list[tuple[int, tuple[str, ...]]] = []
        self.replayed: set[str] = set()
        self.answers: list[tuple[str, int]] = []
        self._time = 0

    def tick(self) -> int:
        """The next point in the order of everything."""
        self._time += 1
        return self._time

    def begin(self, kind: str, mark: str, run: str = "") -> Record:
        """Note that a client asks for something."""
        record = Record(kind, mark, run, self.tick())
        self.all.append(record)
        return record

    def end(self, record: Record, outcome: Outcome) -> None:
        """Note what it was told."""
        record.ended = self.tick()
        record.outcome = outcome
