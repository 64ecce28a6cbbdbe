"""Counting: what there was before, what this run has done, what is left."""

from __future__ import annotations

import asyncio
import secrets

import attrs

from hsm.cli._database import NAMESPACE
from hsm.components.callback import State
from hsm.engine import Engine
from hsm.machine import Lifecycle
from hsm.ref import Ref

__all__ = ["Tally"]


@attrs.define(kw_only=True)
class Tally:
    """The deliveries of a database, kept up to date by what this process sees.

    Attributes:
        confirmed_before, failed_before: deliveries that are through, but not by this run.
        waiting: deliveries that are not through.
        pausing: those of them that were to be tried again later, at the last count.
        confirmed, failed: deliveries of this run.
        retries: attempts of this run that failed and will be repeated.
        started: lines whose delivery was new.
        known: lines whose delivery was in the database.
        known_failed: of these, the ones that have failed for good before.
        refused: lines that are no delivery.
        dead: deliveries whose task is dead-lettered; they are waiting, too.
        nameless: dead letters that do not tell whose they are.
        unreadable: what is wrong with the rows of deliveries that cannot be read, by id; they count as dead.
        failed_ids: the deliveries that had failed at the last count.
        foreign: an attempt has ended of a delivery that this process has not started. It need not have been
            among those that were waiting: with another process at work, this tally may be wrong.
        changed: set whenever an attempt has ended.
    """

    confirmed_before: int = 0
    failed_before: int = 0
    waiting: int = 0
    pausing: int = 0
    confirmed: int = 0
    failed: int = 0
    retries: int = 0
    started: int = 0
    known: int = 0
    known_failed: int = 0
    refused: int = 0
    dead: int = 0
    nameless: int = 0
    unreadable: dict[str, str] = attrs.field(factory=dict[str, str])
    failed_ids: set[str] = attrs.field(factory=set[str])
    foreign: bool = False
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    _token: str = attrs.field(factory=lambda: secrets.token_hex(8), init=False)

    def new_run_id(self) -> str:
        """The run id of a delivery that this process starts."""
        return self._token + secrets.token_hex(8)

    async def recount(self, engine: Engine) -> None:
        """Learn what the database holds now, by this run's doing or another's."""
        confirmed = failed = waiting = pausing = 0
        async for info in engine.list(namespace=NAMESPACE):
            if info.error:
                self.unreadable[info.key.id] = info.error
                waiting += 1
            elif info.status is Lifecycle.COMPLETED:
                confirmed += 1
            elif info.status is Lifecycle.FAILED:
                failed += 1
                self.failed_ids.add(info.key.id)
            else:
                waiting += 1
                pausing += info.state == State.BACKING_OFF.name
        self.confirmed_before = confirmed - self.confirmed
        self.failed_before = failed - self.failed
        self.waiting, self.pausing = waiting, pausing
        await self.count_dead(engine)

    async def count_dead(self, engine: Engine) -> None:
        """Look for dead letters anew."""
        dead, self.nameless = set(self.unreadable), 0
        async for letter in engine.dead_letters():
            if letter.execution is None:
                self.nameless += 1
            elif letter.execution.namespace == NAMESPACE:
                dead.add(letter.execution.id)
        self.dead = len(dead)

    def add_line(self, id_: str, *, new: bool) -> None:
        """A line of the file has its delivery in the database."""
        if new:
            self.started += 1
            self.waiting += 1
            return
        self.known += 1
        self.known_failed += id_ in self.failed_ids

    def add_attempt(self, ref: Ref, state: State) -> None:
        """An attempt has ended."""
        if ref.execution.namespace != NAMESPACE:
            return
        self.changed.set()
        self.foreign = self.foreign or not ref.execution.run_id.startswith(self._token)
        if state is State.BACKING_OFF:
            self.retries += 1
            return
        self.waiting -= 1
        if state is State.SUCCEEDED:
            self.confirmed += 1
        else:
            self.failed += 1

    @property
    def all_confirmed(self) -> int:
        """Deliveries that the receivers have confirmed."""
        return self.confirmed_before + self.confirmed

    @property
    def all_failed(self) -> int:
        """Deliveries that have failed for good, dead-lettered ones included."""
        return self.failed_before + self.failed + self.dead

    @property
    def total(self) -> int:
        """All deliveries."""
        return self.confirmed_before + self.failed_before + self.confirmed + self.failed + self.waiting

    @property
    def unfinished(self) -> int:
        """Deliveries that are still to be tried."""
        return max(self.waiting - self.dead, 0)

    @property
    def flawless(self) -> bool:
        """Whether every line of the file, and whatever else was waiting, has been delivered."""
        return not (self.refused or self.failed or self.known_failed or self.dead or self.unfinished)
