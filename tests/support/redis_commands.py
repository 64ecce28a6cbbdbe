"""Commands for which the driver has no method, or none that is typed."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

__all__ = ["execute"]


async def execute(client: Redis, *words: str | int) -> Any:
    """The answer to a command."""
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]  # the driver's gap
