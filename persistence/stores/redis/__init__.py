"""`redis://`: Redis and Valkey, one server or a cluster; every transaction is one call of a script."""

from persistence.stores.redis.settings import RedisOptions
from persistence.stores.redis.store import RedisStore, from_url

__all__ = ["RedisOptions", "RedisStore", "from_url"]
