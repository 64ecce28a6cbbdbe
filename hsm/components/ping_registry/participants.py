"""The participants: the daemon of a registry and those of its servers, each a process of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final
from uuid import UUID

import attrs

from hsm.components.ping_registry._wrapping import package_errors
from hsm.components.ping_registry.coordinator import Coordinator
from hsm.components.ping_registry.errors import (
    ArgumentNotIdempotentError,
    JournalError,
    PingRegistryError,
    StateConflictError,
    UninitializedError,
)
from hsm.components.ping_registry.index import INDEX_HISTORY, IndexTrimPolicy
from hsm.components.ping_registry.names import REGISTRY_SERVER, server_name
from hsm.components.ping_registry.workflow import State, StateCode
from hsm.engine.clock import Clock, SystemClock, nanos_of, sleep_for, to_nanos
from persistence.errors import StoreBrokenError, StoreClosedError
from persistence.journal import RETRY_NO_VC, Journal, Retention, RetentionOptions, VersionConflictError

__all__ = ["ParticipantOptions", "RegistryDaemon", "ServerDaemon", "summarized"]

_logger = logging.getLogger(__name__)
_FEED_KEPT: Final = timedelta(days=30)
_OPEN: Final = frozenset({StateCode.INITIALIZED, StateCode.APPENDING})


@attrs.frozen(kw_only=True)
class ParticipantOptions:
    """How a participant works.

    Attributes:
        pings: that it sends to a workflow.
        interval: between its pings.
        window: from the start of a workflow to its summary; the registry's daemon alone.
        first_pause: after the first failure with a workflow; doubled after each other.
        longest_pause: the longest pause.
        resume_interval: between looks for commands that a crash has left in the middle; the registry's
            daemon alone.
        expiry_interval: between looks for workflows that are too old; the registry's daemon alone.
        retention_interval: between removals of events that nobody can read any more; the registry's
            daemon alone.
        clock: of all this.
        tell: is told in a few words what the participant does; for people.
    """

    pings: int = 3
    interval: timedelta = timedelta(seconds=1)
    window: timedelta = timedelta(seconds=10)
    first_pause: timedelta = timedelta(milliseconds=250)
    longest_pause: timedelta = timedelta(seconds=20)
    resume_interval: timedelta = timedelta(seconds=30)
    expiry_interval: timedelta = timedelta(hours=1)
    retention_interval: timedelta = timedelta(days=1)
    clock: Clock = attrs.field(factory=SystemClock)
    tell: Callable[[str], None] = _logger.info


class _Participant:
    """Follows the index of a registry, and works on each active workflow in a task of its own.

    A workflow that fails is tried again, with growing pauses, and holds up no other one. Only a store that
    will not come back ends a participant: one that was closed, or is broken.
    """

    def __init__(self, journal: Journal, coordinator: Coordinator, options: ParticipantOptions) -> None:
        self._journal = journal
        self._coordinator = coordinator
        self._options = options
        self._workflows = coordinator.workflows

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            await self._follow(group)

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        tasks: dict[UUID, asyncio.Task[None]] = {}
        index_id = self._coordinator.index_id
        async with self._journal.subscribe(index_id) as subscription:
            failures = 0
            while True:
                try:
                    active = (await self._coordinator.index.find(index_id)).active
                except PingRegistryError as error:
                    _raise_if_final(error)
                    failures += 1
                    _logger.warning("cannot read the index of %s: %s", self._coordinator.registry, error)
                    await self._pause(failures)
                    continue
                failures = 0
                for id_ in [id_ for id_ in tasks if id_ not in active and tasks[id_].done()]:
                    del tasks[id_]
                for id_ in active:
                    if id_ not in tasks:
                        tasks[id_] = group.create_task(self._attend(id_))
                await subscription.wait()

    async def _attend(self, id_: UUID) -> None:
        failures = 0
        while True:
            try:
                await self._work(id_)
            except StateConflictError as error:
                # It has gone on without us.
                self._options.tell(f"workflow {id_}: quit: {error}")
                return
            except UninitializedError:
                self._options.tell(f"workflow {id_}: deleted")
                return
            except PingRegistryError as error:
                _raise_if_final(error)
                failures += 1
                _logger.warning("workflow %s, failure %d: %s", id_, failures, error)
            except Exception:
                failures += 1
                _logger.exception("workflow %s, failure %d", id_, failures)
            else:
                return
            await self._pause(failures)

    async def _work(self, id_: UUID) -> None:
        raise NotImplementedError

    async def _ping(self, id_: UUID, sender: str) -> None:
        """Send those of the pings that the workflow has not got yet."""
        for number in range(1, self._options.pings + 1):
            state = await self._workflows.find(id_)
            if state.state_code not in _OPEN:
                return
            if state.ping_of(sender, str(number)) is None:
                await self._workflows.append_ping(
                    id_, RETRY_NO_VC, 0, f"{sender} ping {number}", sender=sender, request_id=str(number)
                )
                self._options.tell(f"workflow {id_}: ping {number}")
                await self._sleep(nanos_of(self._options.interval))

    async def _pause(self, failures: int) -> None:
        first, longest = nanos_of(self._options.first_pause), nanos_of(self._options.longest_pause)
        await self._sleep(min(first << min(failures - 1, 32), longest))

    async def _sleep(self, nanos: int) -> None:
        await sleep_for(self._options.clock, nanos, asyncio.get_running_loop().create_future())


class ServerDaemon(_Participant):
    """A server: pings each workflow of its registry a few times.

    Its pings have its name and a number each. Started again after a crash, it goes on where it was.
    """

    def __init__(
        self, journal: Journal, registry: str, name: str, options: ParticipantOptions | None = None
    ) -> None:
        """Be the server `name` of `registry`.

        Raises:
            InvalidNameError: one of them is no name.
        """
        options = options or ParticipantOptions()
        super().__init__(journal, Coordinator(journal, registry, clock=options.clock), options)
        self._name = server_name(name)

    async def _work(self, id_: UUID) -> None:
        await self._ping(id_, self._name)


class RegistryDaemon(_Participant):
    """The daemon of a registry: pings, too, and summarises the pings when the time is over.

    It also completes commands that a crash has left in the middle, and sees to workflows that are too old.
    Several of them for one registry do no harm.
    """

    def __init__(self, journal: Journal, registry: str, options: ParticipantOptions | None = None) -> None:
        """Be the daemon of `registry`.

        Raises:
            InvalidNameError: it is no name.
        """
        options = options or ParticipantOptions()
        super().__init__(journal, Coordinator(journal, registry, clock=options.clock), options)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat("resume", self._resume, self._options.resume_interval))
            group.create_task(self._repeat("expire", self._expire, self._options.expiry_interval))
            group.create_task(self._repeat("clean up", self._retain, self._options.retention_interval))
            await self._follow(group)

    async def _retain(self) -> None:
        async with package_errors():
            options = RetentionOptions(feed_kept=_FEED_KEPT)
            retention = Retention(self._journal, {INDEX_HISTORY: IndexTrimPolicy()}, options=options)
            await retention.trim()
            await retention.collect()

    async def _repeat(self, what: str, step: Callable[[], Awaitable[None]], interval: timedelta) -> None:
        while True:
            try:
                await step()
            except PingRegistryError as error:
                _raise_if_final(error)
                _logger.warning("registry %s: cannot %s: %s", self._coordinator.registry, what, error)
            await self._sleep(nanos_of(interval))

    async def _resume(self) -> None:
        count = await self._coordinator.resume()
        if count:
            self._options.tell(f"completed {count} commands that were left in the middle")

    async def _expire(self) -> None:
        report = await self._coordinator.expire()
        for id_ in report.aborted:
            self._options.tell(f"workflow {id_}: expired")
        for id_ in report.deleted:
            self._options.tell(f"workflow {id_}: deleted")

    async def _work(self, id_: UUID) -> None:
        await self._ping(id_, REGISTRY_SERVER)
        state = await self._workflows.find(id_)
        window = nanos_of(self._options.window)
        left = to_nanos(state.start.event_id.time) + window - self._options.clock.time_ns()
        # Never longer than the window, wherever the clock of whoever has begun it stands.
        await self._sleep(min(max(left, 0), window))
        while (state := await self._workflows.find(id_)).state_code in _OPEN:
            code, message = summarized(state)
            try:
                # Of this very view: a ping that comes now shall be counted, too.
                await self._workflows.post_summary(id_, state.vid, code, message, request_id="summary")
            except ArgumentNotIdempotentError:
                # Another daemon of this registry was faster, and has counted otherwise.
                continue
            except JournalError as error:
                if not isinstance(error.__cause__, VersionConflictError):
                    raise
                self._options.tell(f"workflow {id_}: another ping has come, counting again")
            else:
                self._options.tell(f"workflow {id_}: summarised, code {code}: {message}")


def _raise_if_final(error: PingRegistryError) -> None:
    """Raise an error that will be the same the next time, whatever happens meanwhile."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StoreBrokenError | StoreClosedError):
            raise error
        cause = cause.__cause__


def summarized(state: State) -> tuple[int, str]:
    """Code and message of the summary of a workflow: code 1 if a server has an error, or was not heard."""
    errors = sum(ping.code != 0 for ping in state.pings)
    silent = state.silent_servers
    missing = f", missing: {' '.join(silent)}" if silent else ""
    return int(bool(errors or silent)), f"{{ totalCount: {state.num_pings}, errorCount: {errors}{missing} }}"
