"""Many values of one partition, read with as little ado as the store allows."""

from __future__ import annotations

from collections.abc import Sequence

from persistence.store import GetRequest, HasBulkValues, Store

__all__ = ["bulk_values"]


async def bulk_values(store: Store, partition: str, keys: Sequence[str]) -> Sequence[bytes | None]:
    """The values of keys, in order; None for what is absent or expired.

    Raises:
        PersistenceError: whatever one of them meets.
    """
    if not keys:
        return ()
    if isinstance(store, HasBulkValues):
        return await store.bulk_values(partition, keys)
    values: list[bytes | None] = []
    for answer in await store.bulk_get([GetRequest(key=key, partition=partition) for key in keys]):
        if answer.error is not None:
            raise answer.error
        values.append(answer.data)
    return values
