"""`etcd://`: a cluster of etcd v3, many transactions sharing one of the server's."""

from persistence.stores.etcd.settings import EtcdOptions
from persistence.stores.etcd.store import EtcdStore, from_url

__all__ = ["EtcdOptions", "EtcdStore", "from_url"]
