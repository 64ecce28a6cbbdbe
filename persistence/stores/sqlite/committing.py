"""Committing: a batch goes to the writer thread, or is carried out in place if that is sure to be quick."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from persistence.batcher import Finish, Result
from persistence.decision import Transaction, new_etags
from persistence.errors import StoreBusyError
from persistence.stores.sqlite.pace import Pace
from persistence.stores.sqlite.worker import Worker
from persistence.stores.sqlite.writing import Writer

__all__ = ["Committer"]

_log = logging.getLogger(__name__)
_LARGEST_IN_PLACE_BYTES: Final = 64 * 1024


class Committer:
    """Carries out batches.

    A batch of one means that the event loop has little else to do at the moment, and the way to the thread
    and back would cost it half as much again as the commit; see `Pace`. What others keep waiting, and the
    care of the log, are the thread's.
    """

    def __init__(self, thread: Worker, writer: Writer) -> None:
        self._thread = thread
        self._writer = writer
        self._pace = Pace()

    def begin(self, batch: Sequence[Transaction], finish: Finish) -> None:
        """Begin to carry out a batch; `finish` may be called before this returns."""
        etags = new_etags(len(batch))
        if not (self._is_small(batch) and self._pace.quick and self._thread.idle):
            self._commit_in_thread(batch, etags, finish)
            return
        try:
            results = self._commit(batch, etags, wait=False)
        except StoreBusyError:
            self._commit_in_thread(batch, etags, finish)
        except BaseException as error:
            finish(error)
            if not isinstance(error, Exception):
                raise
        else:
            # After those who wait have heard, and before the next batch.
            finish(results)
            if (chore := self._due_chore()) is not None:
                self._thread.call(chore, _ignore)

    def _commit_in_thread(self, batch: Sequence[Transaction], etags: Sequence[str], finish: Finish) -> None:
        self._thread.call(partial(self._commit, batch, etags), finish, chore=self._due_chore)

    @staticmethod
    def _is_small(batch: Sequence[Transaction]) -> bool:
        return len(batch) == 1 and batch[0].size <= _LARGEST_IN_PLACE_BYTES

    def _commit(
        self, batch: Sequence[Transaction], etags: Sequence[str], *, wait: bool = True
    ) -> Sequence[Result]:
        began = time.perf_counter()
        results = self._writer.write_batch(batch, etags, wait=wait)
        self._pace.took(time.perf_counter() - began)
        return results

    def _due_chore(self) -> Callable[[], None] | None:
        work = self._writer.due()
        return None if work is None else partial(_attend, work)


def _attend(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001  nobody waits for it
        # Nothing is lost: the log stays as it is until the next time.
        _log.warning("the log of commits could not be attended to: %s", error)


def _ignore(outcome: BaseException | None) -> None:
    """Nobody waits for it."""
