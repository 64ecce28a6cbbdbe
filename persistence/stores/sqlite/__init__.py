"""`sqlite://`: the embedded default, one file that survives power loss."""

from persistence.stores.sqlite.settings import SqliteOptions
from persistence.stores.sqlite.store import SqliteStore, from_url

__all__ = ["SqliteOptions", "SqliteStore", "from_url"]
