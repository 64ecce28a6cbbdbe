"""The border to the storage contract: its errors become those of these stores, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import TracebackType

from hsm.fsm.errors import GenericStoreError, InvalidDataError, StoreTimeoutError
from persistence.errors import InvalidRequestError, PersistenceError

__all__ = ["guarded"]


class guarded:  # noqa: N801 - stands where `asyncio.timeout` would
    """A block that talks to the database: bounded by a time-out, with errors of this package."""

    __slots__ = ("_scope", "_what")

    def __init__(self, timeout: timedelta, what: str) -> None:
        self._what = what
        self._scope = asyncio.timeout(timeout.total_seconds() or None)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError as timeout:
            raise StoreTimeoutError(f"{self._what}: no answer in time") from timeout
        if isinstance(error, InvalidRequestError):
            raise InvalidDataError(f"{self._what}: {error}") from error
        if isinstance(error, PersistenceError):
            raise GenericStoreError(f"{self._what}: store error: {error}") from error
