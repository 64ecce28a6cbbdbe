"""What is fixed when a database is first used."""

from __future__ import annotations

from hsm.engine._execution import decode_row
from persistence.errors import ETagMismatchError, StoreUnavailableError
from persistence.executions import SETTINGS_KEY, SETTINGS_PARTITION
from persistence.proto.execution_pb2 import EngineSettings
from persistence.store import Concurrency, EngineStore, GetRequest, SetOptions, SetRequest

__all__ = ["shard_count"]


async def shard_count(
    store: EngineStore, wanted: int, *, create: bool = True, partition: str = SETTINGS_PARTITION
) -> int:
    """The number of shards of a database, as its `partition` has it; `wanted` if this is its first use.

    Raises:
        StoreUnavailableError: it would be the first use, and `create` is false.
    """
    request = GetRequest(partition=partition, key=SETTINGS_KEY)
    found = await store.get(request)
    if found.data is None:
        if not create:
            raise StoreUnavailableError("no engine has used this database yet, so it holds no executions")
        value = EngineSettings(shard_count=wanted).SerializeToString()
        first_write = SetOptions(concurrency=Concurrency.FIRST_WRITE)
        try:
            await store.set(
                SetRequest(partition=partition, key=SETTINGS_KEY, value=value, options=first_write)
            )
        except ETagMismatchError:
            found = await store.get(request)
        else:
            return wanted
    return decode_row(EngineSettings, SETTINGS_KEY, found.data or b"").shard_count
