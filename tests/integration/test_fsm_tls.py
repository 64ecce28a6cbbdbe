"""TLS of the service: who is let in, and what is told if the files cannot be used."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme
from google.protobuf.empty_pb2 import Empty
from grpc import StatusCode

from hsm.fsm.database import DatabaseStore
from hsm.fsm.service import ClientTLS, FSMServer, ServerTLS, TLSFileError
from tests.support.fsm.service import client_of, options, refusal


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Path:
    """A directory as the service wants it, with a certificate for a client beside it."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    write(authority, tmp_path, "server", "127.0.0.1", "localhost")
    write(authority, tmp_path, "client", "somebody@example.org")
    return tmp_path


def write(authority: trustme.CA, folder: Path, name: str, *identities: str) -> None:
    issued = authority.issue_cert(*identities)
    (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(folder / f"{name}-key.pem")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DatabaseStore]:
    async with DatabaseStore(f"memory://{tmp_path.name}") as opened:
        yield opened


async def health_of(port: int, credentials: grpc.ChannelCredentials | None) -> bool:
    async with client_of(port, credentials) as client:
        return (await client.Health(Empty(), timeout=20)).tlsEnabled


async def code_of(port: int, credentials: grpc.ChannelCredentials | None) -> StatusCode:
    async with client_of(port, credentials) as client:
        return (await refusal(client.Health(Empty(), timeout=20)))[0]


async def test_client_that_trusts_the_authority_gets_in(store: DatabaseStore, files: Path) -> None:
    async with FSMServer(store, options(tls=ServerTLS(files))) as server:
        assert await health_of(server.port, ClientTLS(files / "ca.pem").credentials())


async def test_plain_text_and_strangers_stay_out(store: DatabaseStore, files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with FSMServer(store, options(tls=ServerTLS(files))) as server:
        assert await code_of(server.port, None) == StatusCode.UNAVAILABLE
        assert await code_of(server.port, ClientTLS(other).credentials()) == StatusCode.UNAVAILABLE


async def test_mutual_tls_asks_for_a_certificate_of_the_authority(store: DatabaseStore, files: Path) -> None:
    write(trustme.CA(), files, "stranger", "somebody@example.org")
    authority = files / "ca.pem"
    async with FSMServer(store, options(tls=ServerTLS(files, mutual=True))) as server:
        ours = ClientTLS(authority, files / "client.pem", files / "client-key.pem")
        assert await health_of(server.port, ours.credentials())
        without = ClientTLS(authority)
        stranger = ClientTLS(authority, files / "stranger.pem", files / "stranger-key.pem")
        for refused in (without, stranger):
            assert await code_of(server.port, refused.credentials()) == StatusCode.UNAVAILABLE


async def test_old_versions_of_tls_are_not_spoken(store: DatabaseStore, files: Path) -> None:
    async with FSMServer(store, options(tls=ServerTLS(files))) as server:
        context = ssl.create_default_context(cafile=files / "ca.pem")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
            pytest.raises(ssl.SSLError),
        ):
            context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server-key.pem"])
@pytest.mark.parametrize("content", [None, b"no PEM"])
async def test_file_that_cannot_be_used_is_named_before_anything_is_done(
    store: DatabaseStore, files: Path, name: str, content: bytes | None
) -> None:
    (files / name).unlink()
    if content is not None:
        (files / name).write_bytes(content)
    with pytest.raises(TLSFileError, match=name) as caught:
        async with FSMServer(store, options(tls=ServerTLS(files))):
            pass
    assert caught.value.file == files / name


async def test_directory_of_the_environment(
    store: DatabaseStore, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLS_CONFIG_DIR", str(files))
    async with FSMServer(store, options(tls=ServerTLS())) as server:
        assert await health_of(server.port, ClientTLS(files / "ca.pem").credentials())
    monkeypatch.delenv("TLS_CONFIG_DIR")
    with pytest.raises(TLSFileError, match=r"/etc/statemachine/certs/server\.pem"):
        ServerTLS().credentials()


async def test_certificate_is_renewed_without_a_restart(store: DatabaseStore, files: Path) -> None:
    before = (files / "ca.pem").read_bytes()
    after = trustme.CA()
    async with FSMServer(store, options(tls=ServerTLS(files))) as server:
        assert await health_of(server.port, trusting(before))
        async with client_of(server.port, trusting(before)) as old:
            await old.Health(Empty(), timeout=20)
            write(after, files, "server", "127.0.0.1", "localhost")

            assert await health_of(server.port, trusting(after.cert_pem.bytes()))
            assert await code_of(server.port, trusting(before)) == StatusCode.UNAVAILABLE
            assert (await old.Health(Empty(), timeout=20)).tlsEnabled  # its connection stays


async def test_authority_of_clients_is_exchanged_without_a_restart(store: DatabaseStore, files: Path) -> None:
    trusted = files / "trusted.pem"
    trusted.write_bytes((files / "ca.pem").read_bytes())
    other = trustme.CA()
    write(other, files, "other", "somebody@example.org")
    own, others = (
        ClientTLS(trusted, files / f"{name}.pem", files / f"{name}-key.pem").credentials()
        for name in ("client", "other")
    )
    async with FSMServer(store, options(tls=ServerTLS(files, mutual=True))) as server:
        assert await health_of(server.port, own)
        assert await code_of(server.port, others) == StatusCode.UNAVAILABLE

        other.cert_pem.write_to_path(files / "ca.pem")

        assert await health_of(server.port, others)
        assert await code_of(server.port, own) == StatusCode.UNAVAILABLE


async def test_certificate_that_is_half_written_is_left_aside(
    store: DatabaseStore, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = (files / "ca.pem").read_bytes()
    key = (files / "server-key.pem").read_bytes()
    async with FSMServer(store, options(tls=ServerTLS(files))) as server:
        for content in (b"", b"no PEM", trustme.CA().issue_cert("localhost").private_key_pem.bytes()):
            (files / "server-key.pem").write_bytes(content)
            for _ in range(2):
                assert await health_of(server.port, trusting(authority))
        (files / "server.pem").unlink()
        assert await health_of(server.port, trusting(authority))

        write(trustme.CA(), files, "server", "127.0.0.1")
        (files / "server-key.pem").write_bytes(key)  # of another certificate
        assert await health_of(server.port, trusting(authority))
        after = trustme.CA()
        write(after, files, "server", "127.0.0.1")
        assert await health_of(server.port, trusting(after.cert_pem.bytes()))
    assert caplog.text.count("server-key.pem") == 1
    assert caplog.text.count("server.pem cannot be used") == 1


def trusting(authority: bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=authority)
