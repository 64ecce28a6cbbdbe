"""`postgresql://`: a PostgreSQL server, shared by any number of processes."""

from persistence.stores.postgresql.settings import PostgresOptions
from persistence.stores.postgresql.store import PostgresStore, from_url

__all__ = ["PostgresOptions", "PostgresStore", "from_url"]
