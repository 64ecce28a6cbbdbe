"""`mysql://`, `mariadb://`: a database on a MariaDB or MySQL server, written by group commit."""

from persistence.stores.mariadb.settings import MariaDBAddress, MariaDBOptions
from persistence.stores.mariadb.store import MariaDBStore, from_url

__all__ = ["MariaDBAddress", "MariaDBOptions", "MariaDBStore", "from_url"]
