"""Errors of what the package stands on come out as errors of the package."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from hsm.aggregate.errors import AggregateError
from hsm.components.ping_registry.errors import JournalError, PingRegistryError
from persistence.errors import PersistenceError
from persistence.journal import RetryNoVCError

__all__ = ["package_errors"]


@asynccontextmanager
async def package_errors() -> AsyncGenerator[None, None]:
    """Let errors of the package through, and wrap those of the journal, the store and the engine."""
    try:
        yield
    except RetryNoVCError as error:
        if isinstance(error.error, PingRegistryError):
            # The last try was refused, which is an answer.
            raise error.error from error
        raise JournalError(f"event journal: {error}") from error
    except (PersistenceError, AggregateError) as error:
        raise JournalError(f"event journal: {error}") from error
