"""Machines that come from configuration on Redis or Valkey, in the keys that other programs use, too."""

from hsm.fsm.redis.options import RedisStoreOptions
from hsm.fsm.redis.store import RedisStore

__all__ = ["RedisStore", "RedisStoreOptions"]
