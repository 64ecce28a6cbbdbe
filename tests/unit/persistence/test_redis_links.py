"""Connections to Redis: one that is given up is gone, whatever the server does."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from persistence.errors import PersistenceError
from persistence.stores.redis.links import Dialer
from persistence.stores.redis.settings import RedisOptions, Target

PATIENCE_SECONDS = 10


def refuse(listener: socket.socket, context: ssl.SSLContext) -> bool:
    """Refuse one client over TLS, and never close; whether the client does, though nobody takes leave of it."""
    accepted, _ = listener.accept()
    accepted.settimeout(PATIENCE_SECONDS)
    with context.wrap_socket(accepted, server_side=True) as connection:
        connection.recv(1000)
        connection.sendall(b"-WRONGPASS invalid username-password pair\r\n")
        with socket.socket(fileno=os.dup(connection.fileno())) as below:
            below.settimeout(PATIENCE_SECONDS)
            try:
                while below.recv(1000):
                    pass
            except ConnectionResetError:
                return True
            except TimeoutError:
                return False
    return True


async def test_connection_that_is_refused_over_tls_does_not_wait_for_the_server_to_take_leave(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context.load_cert_chain(tmp_path / "server.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        served = asyncio.create_task(asyncio.to_thread(refuse, listener, context))
        target = Target(
            host=host, port=port, database=0, username=None, password="wrong", cluster=False, tls=True
        )
        dialer = Dialer(target, RedisOptions(tls_ca=str(tmp_path / "ca.pem")))

        with pytest.raises(PersistenceError, match="refuses us"):
            await dialer.dial((host, port))

        assert await served
