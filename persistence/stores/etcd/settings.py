"""How to reach a cluster of etcd, and the options of a store on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import unquote

import attrs

from persistence.errors import InvalidRequestError
from persistence.options import check_text
from persistence.settings import Properties, split_url

__all__ = ["Cluster", "EtcdOptions", "parse_url"]

_DEFAULT_PORT: Final = 2379
_MAX_PREFIX_BYTES: Final = 256


@attrs.frozen
class EtcdOptions:
    """How to use a cluster. In a URL or in `Metadata` times are given in seconds.

    Attributes:
        prefix: what all keys of the store begin with; stores of different prefixes never meet.
        create: whether the store's mark is made if it is not there, and an older one brought up to date; else
            that is `StoreUnavailableError`.
        connect_timeout: how long to try to connect to one member of the cluster.
        request_timeout: how long to wait for the answer to anything; a commit whose answer does not come
            is looked into within the same time.
        lanes: groups of partitions that commit independently of each other.
        tls_ca: file of the certificates (PEM) that the server's is checked against, "" for the usual ones.
            Default: what the environment variable ETCDCTL_CACERT says, if the scheme is `etcds`.
        tls_cert: file of the client's certificate chain (PEM). Default: ETCDCTL_CERT.
        tls_key: file of the client's private key (PEM). Default: ETCDCTL_KEY.
        tls_server_name: the name that the server's certificate must have, "" for the host's.
    """

    prefix: str = "hsm/"
    create: bool = True
    connect_timeout: timedelta = timedelta(seconds=5)
    request_timeout: timedelta = timedelta(seconds=10)
    lanes: int = 1
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_server_name: str = ""

    def changed(self, texts: Mapping[str, str]) -> EtcdOptions:
        """These options with some replaced by texts.

        Raises:
            InvalidRequestError: an unknown name, or a value that is none.
        """
        with Properties("etcd", texts) as properties:
            options = EtcdOptions(
                prefix=properties.text("prefix", self.prefix),
                create=properties.flag("create", self.create),
                connect_timeout=properties.seconds("connect_timeout", self.connect_timeout),
                request_timeout=properties.seconds("request_timeout", self.request_timeout),
                lanes=properties.connections("lanes", self.lanes),
                tls_ca=properties.text("tls_ca", self.tls_ca),
                tls_cert=properties.text("tls_cert", self.tls_cert),
                tls_key=properties.text("tls_key", self.tls_key),
                tls_server_name=properties.text("tls_server_name", self.tls_server_name),
            )
        options.check()
        return options

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            InvalidRequestError: names the option.
        """
        if check_text(self.prefix, "etcd option prefix") > _MAX_PREFIX_BYTES:
            raise InvalidRequestError(f"etcd option prefix has more than {_MAX_PREFIX_BYTES} bytes")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidRequestError("the etcd options tls_cert and tls_key belong together: give both")


@attrs.frozen
class Cluster:
    """Where a cluster is, and who asks.

    Attributes:
        endpoints: `host:port` of members; the first one that answers is used.
        tls: whether connections are encrypted.
        user: name of the user, "" if the cluster does not ask for one.
        password: of the user.
    """

    endpoints: tuple[str, ...]
    tls: bool = False
    user: str = ""
    password: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return f"{'etcds' if self.tls else 'etcd'}://{','.join(self.endpoints)}"


def parse_url(url: str) -> tuple[Cluster, EtcdOptions]:
    """The cluster and the options of `etcd://user:password@host:2379,host:2379/?prefix=hsm/`.

    What the URL does not say is taken from the variables of the environment that etcdctl knows:
    ETCDCTL_USER (`name` or `name:password`) and ETCDCTL_PASSWORD, and for `etcds` ETCDCTL_CACERT,
    ETCDCTL_CERT and ETCDCTL_KEY.

    Raises:
        InvalidRequestError: not such a URL, or an unknown option.
    """
    scheme, _, rest = url.partition("://")
    tail = min((index for index in map(rest.find, "/?") if index >= 0), default=len(rest))
    authority = rest[:tail]
    credentials, _, hosts = authority.rpartition("@")
    # Several hosts are more than a URL usually has, so that they are read here.
    parts, texts = split_url(f"{scheme}://host{rest[tail:]}")
    if parts.path.strip("/"):
        raise InvalidRequestError("an etcd URL has no path; the keys' prefix is the option prefix")
    tls = scheme.lower() == "etcds"
    if not tls and any(name.startswith("tls_") for name in texts):
        raise InvalidRequestError("TLS options need the scheme etcds://")
    options = (_tls_of_environment() if tls else EtcdOptions()).changed(texts)
    user, password = _credentials(credentials)
    endpoints = tuple(_endpoint(host) for host in hosts.split(","))
    return Cluster(endpoints, tls, user, password), options


def _tls_of_environment() -> EtcdOptions:
    variable = os.environ.get
    return EtcdOptions(
        tls_ca=variable("ETCDCTL_CACERT", ""),
        tls_cert=variable("ETCDCTL_CERT", ""),
        tls_key=variable("ETCDCTL_KEY", ""),
    )


def _credentials(text: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    if user:
        return unquote(user), unquote(password) or os.environ.get("ETCDCTL_PASSWORD", "")
    user, _, password = os.environ.get("ETCDCTL_USER", "").partition(":")
    return user, password or os.environ.get("ETCDCTL_PASSWORD", "")


def _endpoint(text: str) -> str:
    """`host:port` from a host with or without a port; an IPv6 address stands in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_DEFAULT_PORT)
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidRequestError("an etcd URL names one host or more: etcd://host:2379,host:2379")
    return f"{host}:{port}"
