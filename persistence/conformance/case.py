"""A case: one sentence of the contract, and the world in which it is checked."""

from __future__ import annotations

import asyncio
import unittest
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Generic, Self, TypeAlias, TypeVar

import attrs

from persistence.errors import ETagMismatchError
from persistence.features import require
from persistence.store import (
    Concurrency,
    DeleteOptions,
    DeleteRequest,
    Feature,
    GetRequest,
    GetResponse,
    Item,
    OrderedStore,
    SetOptions,
    SetRequest,
    Store,
    TransactionalStore,
)

__all__ = [
    "Case",
    "Cases",
    "ConformanceError",
    "OpenStore",
    "Refused",
    "Wait",
    "World",
    "expect",
    "expect_equal",
]

OpenStore: TypeAlias = Callable[[], Store]
"""Makes a store that is not open yet, each time on the same database."""

Wait: TypeAlias = Callable[[float], Awaitable[None]]
"""Lets so many seconds pass on the clock that decides about expiry."""

ErrorT = TypeVar("ErrorT", bound=BaseException)
_POLL_SECONDS: Final = 0.25
_POLLS: Final = 40
_FIRST_WRITE: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)


class ConformanceError(AssertionError):
    """The store does not do what the contract says."""


def expect(condition: object, message: str) -> None:
    """Fail the case unless the condition holds; not an `assert`, which `python -O` would leave out."""
    if not condition:
        raise ConformanceError(message)


def expect_equal(found: object, expected: object, what: str) -> None:
    """Fail the case unless both are equal."""
    if found != expected:
        raise ConformanceError(f"{what}: found {_short(found)}, expected {_short(expected)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 500 else f"{text[:500]}... ({len(text)} characters)"


class Refused(Generic[ErrorT]):
    """The block must raise this error: `with Refused(ETagMismatchError) as refused: ...`."""

    def __init__(self, kind: type[ErrorT]) -> None:
        self._kind = kind
        self._error: ErrorT | None = None

    @property
    def error(self) -> ErrorT:
        """The error that the block raised."""
        if self._error is None:
            raise ConformanceError("the block has not ended")
        return self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            raise ConformanceError(f"{self._kind.__name__} was not raised")
        if isinstance(error, self._kind):
            self._error = error
            return True
        if isinstance(error, Exception):
            raise ConformanceError(f"{error!r} was raised instead of {self._kind.__name__}") from error
        return False


class World:
    """What a case works with: an open store, a partition of its own, and short ways to say things.

    Attributes:
        store: the store under test.
        partition: a partition that nobody else uses.
        open_store: makes another store on the same database.
        wait: lets time pass.
    """

    def __init__(self, store: Store, open_store: OpenStore, wait: Wait) -> None:
        self.store = store
        self.partition: str = f"conformance/{uuid.uuid4().hex}"
        self.open_store = open_store
        self.wait = wait

    @property
    def transactional(self) -> TransactionalStore:
        """The store, typed as one with transactions."""
        return require(self.store, TransactionalStore)

    @property
    def ordered(self) -> OrderedStore:
        """The store, typed as one that scans."""
        return require(self.store, OrderedStore)

    def set_request(
        self,
        key: str,
        value: bytes = b"",
        *,
        etag: str | None = None,
        first: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> SetRequest:
        """A set in this world's partition."""
        return SetRequest(
            partition=self.partition,
            key=key,
            value=value,
            etag=etag,
            metadata=metadata or {},
            options=_FIRST_WRITE if first else SetOptions(),
        )

    def delete_request(self, key: str, *, etag: str | None = None, first: bool = False) -> DeleteRequest:
        """A delete in this world's partition."""
        concurrency = Concurrency.FIRST_WRITE if first else Concurrency.DEFAULT
        options = DeleteOptions(concurrency=concurrency)
        return DeleteRequest(partition=self.partition, key=key, etag=etag, options=options)

    async def set(
        self,
        key: str,
        value: bytes = b"",
        *,
        etag: str | None = None,
        first: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Set a key in this world's partition."""
        await self.store.set(self.set_request(key, value, etag=etag, first=first, metadata=metadata))

    async def delete(self, key: str, *, etag: str | None = None, first: bool = False) -> None:
        """Delete a key of this world's partition."""
        await self.store.delete(self.delete_request(key, etag=etag, first=first))

    async def get(self, key: str) -> GetResponse:
        """Read a key of this world's partition."""
        return await self.store.get(GetRequest(partition=self.partition, key=key))

    async def value(self, key: str) -> bytes | None:
        """The value of a key, None if it is absent."""
        return (await self.get(key)).data

    async def etag(self, key: str) -> str:
        """The etag of a key that must be there."""
        etag = (await self.get(key)).etag
        if not etag:
            raise ConformanceError(f"key {key!r} has no etag")
        return etag

    async def other_etag(self) -> str:
        """An etag that the store did give out, but to another key."""
        key = f"other/{uuid.uuid4().hex}"
        await self.set(key)
        return await self.etag(key)

    async def scan(
        self, start: str = "", end: str = "", *, limit: int | None = None, reverse: bool = False
    ) -> list[Item]:
        """All that a scan of this world's partition gives."""
        rows = self.ordered.scan(self.partition, start, end, limit=limit, reverse=reverse)
        return [item async for item in rows]

    async def keys(
        self, start: str = "", end: str = "", *, limit: int | None = None, reverse: bool = False
    ) -> list[str]:
        """The keys that a scan gives."""
        return [item.key for item in await self.scan(start, end, limit=limit, reverse=reverse)]

    async def expect_values(self, expected: Mapping[str, bytes | None]) -> None:
        """Each key has this value, or is absent (None)."""
        for key, value in expected.items():
            expect_equal(await self.value(key), value, f"value of {key!r}")

    async def eventually(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait, some seconds at most, until the condition holds."""
        for _ in range(_POLLS):
            if await condition():
                return
            await self.wait(_POLL_SECONDS)
        raise ConformanceError(f"did not happen in time: {what}")

    async def winners(self, attempts: Sequence[Awaitable[object]]) -> int:
        """How many of concurrent attempts succeed; the others must lose by an etag mismatch."""
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, ETagMismatchError):
                raise outcome
        return sum(not isinstance(outcome, BaseException) for outcome in outcomes)


@attrs.frozen
class Case:
    """One case of the suite; `str(case)` is its name.

    Attributes:
        name: the case as a sentence with underscores.
        needs: features without which it is skipped.
        run: the case itself.
    """

    name: str
    needs: frozenset[Feature]
    run: Callable[[World], Awaitable[None]]

    def __str__(self) -> str:
        return self.name

    async def check(self, open_store: OpenStore, wait: Wait = asyncio.sleep) -> None:
        """Run the case against a fresh store of `open_store`.

        Raises:
            unittest.SkipTest: the store does not declare a feature that the case needs (pytest skips, too).
            ConformanceError: the store does not do what the contract says.
        """
        async with open_store() as store:
            missing = sorted(feature.value for feature in self.needs - store.features)
            if missing:
                raise unittest.SkipTest(f"the store does not declare {', '.join(missing)}")
            await self.run(World(store, open_store, wait))


class Cases:
    """The cases of one module, in order."""

    def __init__(self, *needs: Feature) -> None:
        self.all: list[Case] = []
        self._needs = frozenset(needs)

    def case(
        self, *needs: Feature
    ) -> Callable[[Callable[[World], Awaitable[None]]], Callable[[World], Awaitable[None]]]:
        """Add a function as a case that needs these features and those of the module."""

        def add(run: Callable[[World], Awaitable[None]]) -> Callable[[World], Awaitable[None]]:
            self.all.append(Case(run.__name__, self._needs | frozenset(needs), run))
            return run

        return add
