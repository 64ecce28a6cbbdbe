"""A connection to one member of a cluster: the methods of etcd's API that we call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message
from grpc import ChannelConnectivity, ChannelCredentials, ssl_channel_credentials
from grpc.aio import (
    Channel,
    StreamStreamMultiCallable,
    UnaryUnaryMultiCallable,
    insecure_channel,
    secure_channel,
)

from persistence.errors import StoreUnavailableError
from persistence.proto import etcd_pb2
from persistence.stores.etcd.settings import Cluster, EtcdOptions

__all__ = ["Connection", "read_credentials"]

RequestT = TypeVar("RequestT", bound=Message)
ResponseT_co = TypeVar("ResponseT_co", bound=Message, covariant=True)
_KEEPALIVE_MILLISECONDS: Final = 10_000  # etcd drops connections that ask more often than every 5 s
_MOST_ANSWER_BYTES: Final = 32 * 1024 * 1024
_MILLISECONDS: Final = 1000
_MOST_MILLISECONDS: Final = 2**31 - 1


class _Parser(Protocol[ResponseT_co]):
    def FromString(self, s: bytes, /) -> ResponseT_co: ...  # noqa: N802  protobuf's name


class Connection:
    """A channel of gRPC, used by the event loop that runs when it is made. It connects when it is needed.

    Attributes:
        endpoint: `host:port` of the member.
    """

    def __init__(self, endpoint: str, options: EtcdOptions, credentials: ChannelCredentials | None) -> None:
        self.endpoint: str = endpoint
        connect_milliseconds = _milliseconds(options.connect_timeout)
        request_milliseconds = _milliseconds(options.request_timeout)
        arguments: list[tuple[str, str | int]] = [
            # etcd answers with whatever a range holds, and only this end knows what it has room for.
            ("grpc.max_receive_message_length", _MOST_ANSWER_BYTES),
            ("grpc.max_send_message_length", -1),
            # Despite its name, the time that an attempt to connect has.
            ("grpc.min_reconnect_backoff_ms", connect_milliseconds),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
            ("grpc.keepalive_timeout_ms", request_milliseconds),
            ("grpc.http2.max_pings_without_data", 0),
            # A connection is replaced when it fails; the new one shall not share the old one's back-off.
            ("grpc.use_local_subchannel_pool", 1),
            # Databases are not behind the proxy that the environment may name for the web.
            ("grpc.enable_http_proxy", 0),
        ]
        if options.tls_server_name:
            arguments.append(("grpc.ssl_target_name_override", options.tls_server_name))
        self._channel: Channel = (
            insecure_channel(endpoint, arguments)
            if credentials is None
            else secure_channel(endpoint, credentials, arguments)
        )
        self.range: UnaryUnaryMultiCallable[etcd_pb2.RangeRequest, etcd_pb2.RangeResponse] = self._unary(
            "KV/Range", etcd_pb2.RangeRequest, etcd_pb2.RangeResponse
        )
        self.put: UnaryUnaryMultiCallable[etcd_pb2.PutRequest, etcd_pb2.PutResponse] = self._unary(
            "KV/Put", etcd_pb2.PutRequest, etcd_pb2.PutResponse
        )
        self.delete_range: UnaryUnaryMultiCallable[
            etcd_pb2.DeleteRangeRequest, etcd_pb2.DeleteRangeResponse
        ] = self._unary("KV/DeleteRange", etcd_pb2.DeleteRangeRequest, etcd_pb2.DeleteRangeResponse)
        self.txn: UnaryUnaryMultiCallable[etcd_pb2.TxnRequest, etcd_pb2.TxnResponse] = self._unary(
            "KV/Txn", etcd_pb2.TxnRequest, etcd_pb2.TxnResponse
        )
        self.grant: UnaryUnaryMultiCallable[etcd_pb2.LeaseGrantRequest, etcd_pb2.LeaseGrantResponse] = (
            self._unary("Lease/LeaseGrant", etcd_pb2.LeaseGrantRequest, etcd_pb2.LeaseGrantResponse)
        )
        self.revoke: UnaryUnaryMultiCallable[etcd_pb2.LeaseRevokeRequest, etcd_pb2.LeaseRevokeResponse] = (
            self._unary("Lease/LeaseRevoke", etcd_pb2.LeaseRevokeRequest, etcd_pb2.LeaseRevokeResponse)
        )
        self.authenticate: UnaryUnaryMultiCallable[
            etcd_pb2.AuthenticateRequest, etcd_pb2.AuthenticateResponse
        ] = self._unary("Auth/Authenticate", etcd_pb2.AuthenticateRequest, etcd_pb2.AuthenticateResponse)
        self.status: UnaryUnaryMultiCallable[etcd_pb2.StatusRequest, etcd_pb2.StatusResponse] = self._unary(
            "Maintenance/Status", etcd_pb2.StatusRequest, etcd_pb2.StatusResponse
        )

    def _unary(
        self, method: str, request: type[RequestT], response: _Parser[ResponseT_co]
    ) -> UnaryUnaryMultiCallable[RequestT, ResponseT_co]:
        serialize: Callable[[RequestT], bytes] = request.SerializeToString
        return self._channel.unary_unary(f"/etcdserverpb.{method}", serialize, response.FromString)

    def watch(self) -> StreamStreamMultiCallable[etcd_pb2.WatchRequest, etcd_pb2.WatchResponse]:
        """The stream of changes."""
        return self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            etcd_pb2.WatchRequest.SerializeToString,
            etcd_pb2.WatchResponse.FromString,
        )

    @property
    def ready(self) -> bool:
        """Whether it is connected."""
        return self._channel.get_state() is ChannelConnectivity.READY

    async def aclose(self, grace_seconds: float | None = None) -> None:
        """Disconnect; what is under way is given so long to end."""
        await self._channel.close(grace_seconds)


def _milliseconds(time: timedelta) -> int:
    """What gRPC is told, which takes neither 0 nor more than 24 days."""
    return min(max(1, int(time.total_seconds() * _MILLISECONDS)), _MOST_MILLISECONDS)


def read_credentials(cluster: Cluster, options: EtcdOptions) -> ChannelCredentials | None:
    """What connections are encrypted with, None if they are not.

    Raises:
        StoreUnavailableError: a file cannot be read.
    """
    if not cluster.tls:
        return None
    contents: list[bytes | None] = []
    for name in (options.tls_ca, options.tls_key, options.tls_cert):
        try:
            contents.append(Path(name).read_bytes() if name else None)
        except OSError as error:
            raise StoreUnavailableError(
                f"cannot read {name} for the connection to {cluster}: {error}"
            ) from error
    authority, key, certificate = contents
    return ssl_channel_credentials(authority, key, certificate)
