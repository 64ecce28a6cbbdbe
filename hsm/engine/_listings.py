"""Listings of executions: filters, and the rows that have to be read for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import attrs

from hsm.engine._queries import execution_info
from hsm.engine._search import index_ranges, matches
from hsm.engine._shards import Shards
from hsm.engine._translation import translated
from hsm.engine.info import ExecutionInfo, ExecutionPage
from hsm.engine.search import Between, SearchValue
from hsm.machine import Lifecycle
from persistence import errors as storage
from persistence.executions import AFTER_SLASH, escape, prefix_end
from persistence.store import EngineStore, GetRequest, Item

__all__ = ["Listings"]

_ROWS_AT_ONCE: Final = 100
_NO_ATTRIBUTES: Final[Mapping[str, SearchValue | Between]] = {}


@attrs.frozen
class _Filter:
    namespace: str | None
    status: Lifecycle | None
    state: str | None
    attributes: Mapping[str, SearchValue | Between]
    started: Between | None
    closed: Between | None

    def matches(self, info: ExecutionInfo) -> bool:
        """Whether an execution is one of those that are looked for; an unreadable one matches no filter."""
        if info.error:
            return (
                self.status is None
                and self.state is None
                and not self.attributes
                and self.started is None
                and self.closed is None
            )
        return (
            (self.status is None or info.status is self.status)
            and (self.state is None or info.state == self.state)
            and (self.started is None or self.started.matches(info.start_time))
            and (self.closed is None or _is_within(info.close_time, self.closed))
            and all(matches(info.attributes.get(name), value) for name, value in self.attributes.items())
        )

    def scans(self, partitions: Sequence[str]) -> list[tuple[str, str, str]]:
        """Partition, start and end of what has to be read: as little as an index allows."""
        ranges = [("e/", "e" + AFTER_SLASH)]
        if self.namespace is not None:
            start = f"e/{escape(self.namespace)}/"
            ranges = [(start, prefix_end(start))]
            # The first one named is the one to go by: only the caller knows which is the rarest.
            for name, value in self.attributes.items():
                found = index_ranges(self.namespace, name, value)
                if found is not None:
                    ranges = found
                    break
        return [(partition, start, end) for partition in partitions for start, end in ranges]


def _is_within(time: datetime | None, bounds: Between) -> bool:
    return time is not None and bounds.matches(time)


class Listings:
    """The part of an engine that lists executions."""

    _store: EngineStore
    _shards: Shards

    def list(
        self,
        *,
        namespace: str | None = None,
        status: Lifecycle | None = None,
        state: str | None = None,
        attributes: Mapping[str, SearchValue | Between] = _NO_ATTRIBUTES,
        started: Between | None = None,
        closed: Between | None = None,
    ) -> AsyncIterator[ExecutionInfo]:
        """The executions that match, in no particular order over all.

        With a namespace and attributes, an index finds those that have the first attribute's value; for all
        else, every execution is looked at.

        Args:
            namespace: of the executions.
            status: whether they are running, or how they were closed.
            state: the name of the root's state.
            attributes: values, or bounds of values, of their search attributes; for keywords, one of them.
            started: bounds of the time of their start.
            closed: bounds of the time at which they were closed; running ones do not match.
        """
        chosen = _Filter(namespace, status, state, attributes, started, closed)
        return self._all(chosen)

    async def page(
        self,
        *,
        size: int = 100,
        token: str = "",
        namespace: str | None = None,
        status: Lifecycle | None = None,
        state: str | None = None,
        attributes: Mapping[str, SearchValue | Between] = _NO_ATTRIBUTES,
        started: Between | None = None,
        closed: Between | None = None,
    ) -> ExecutionPage:
        """Up to `size` executions of those that `list` would tell of, and a token to go on with.

        The token is text, and means the same to all processes, if the other arguments are the same.

        Raises:
            ValueError: the token is none, or the size is less than 1.
        """
        if size < 1:
            raise ValueError(f"a page of {size} executions is none")
        chosen = _Filter(namespace, status, state, attributes, started, closed)
        found: list[ExecutionInfo] = []
        async for info, position in self._from(chosen, token):
            found.append(info)
            if len(found) == size:
                return ExecutionPage(tuple(found), position)
        return ExecutionPage(tuple(found))

    async def count(
        self,
        *,
        namespace: str | None = None,
        status: Lifecycle | None = None,
        state: str | None = None,
        attributes: Mapping[str, SearchValue | Between] = _NO_ATTRIBUTES,
        started: Between | None = None,
        closed: Between | None = None,
    ) -> int:
        """How many executions `list` would tell of."""
        chosen = _Filter(namespace, status, state, attributes, started, closed)
        count = 0
        async for _ in self._all(chosen):
            count += 1
        return count

    async def _all(self, chosen: _Filter) -> AsyncIterator[ExecutionInfo]:
        async for info, _ in self._from(chosen, ""):
            yield info

    async def _from(self, chosen: _Filter, token: str) -> AsyncIterator[tuple[ExecutionInfo, str]]:
        """What matches from a position on, each with the position after it."""
        scans = chosen.scans(self._shards.partitions)
        first, after = 0, ""
        if token:
            place, _, after = token.partition(":")
            if not place.isdigit() or not after:
                raise ValueError(f"{token!r} is no token of a page")
            first = int(place)
        try:
            for number in range(first, len(scans)):
                partition, start, end = scans[number]
                if number == first and after:
                    if not start <= after < end:
                        raise ValueError(f"{token!r} is no token of this page")
                    start = after + "\x01"
                async for key, info in self._read(partition, start, end):
                    if chosen.matches(info):
                        yield info, f"{number}:{key}"
        except storage.PersistenceError as error:
            raise translated(error) from error

    async def _read(self, partition: str, start: str, end: str) -> AsyncIterator[tuple[str, ExecutionInfo]]:
        items = self._store.scan(partition, start, end)
        if start[0] == "e":
            async for item in items:
                yield item.key, execution_info(item.key, item.value)
            return
        batch: list[Item] = []
        async for item in items:
            batch.append(item)
            if len(batch) == _ROWS_AT_ONCE:
                for found in await self._indexed(partition, batch):
                    yield found
                batch = []
        for found in await self._indexed(partition, batch):
            yield found

    async def _indexed(self, partition: str, batch: Sequence[Item]) -> Sequence[tuple[str, ExecutionInfo]]:
        """The executions that index rows point to."""
        keys = [_execution_key(item.key) for item in batch]
        requests = [GetRequest(partition=partition, key=key) for key in keys]
        found = {answer.key: answer for answer in await self._store.bulk_get(requests)} if requests else {}
        executions: list[tuple[str, ExecutionInfo]] = []
        for item, key in zip(batch, keys, strict=True):
            answer = found[key]
            if answer.error is not None:
                raise answer.error
            # One that is gone was deleted since the index was read.
            if answer.data is not None:
                executions.append((item.key, execution_info(key, answer.data)))
        return executions


def _execution_key(index_key: str) -> str:
    _, namespace, *_, id_, run_id = index_key.split("/")
    return f"e/{namespace}/{id_}/{run_id}"
