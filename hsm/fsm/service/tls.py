"""TLS of the service: which files hold its certificate, and whether clients have to show one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import attrs
import grpc

from hsm.fsm.service.errors import TLSFileError

__all__ = ["DEFAULT_TLS_DIRECTORY", "TLS_DIRECTORY_VARIABLE", "ClientTLS", "ServerTLS"]

TLS_DIRECTORY_VARIABLE: Final = "TLS_CONFIG_DIR"
"""The environment variable that names the directory of the files."""

DEFAULT_TLS_DIRECTORY: Final = Path("/etc/statemachine/certs")
"""Where the files are if nothing says so."""

_AUTHORITY: Final = "ca.pem"
_PRIVATE: Final = "PRIVATE KEY-----"


@attrs.frozen
class ServerTLS:
    """The service's certificate, `server.pem` with `server-key.pem`, and `ca.pem`, which vouches for clients.

    TLS 1.2 is the oldest version that is spoken.

    Attributes:
        directory: of the files; None for that in `TLS_CONFIG_DIR`, or else `/etc/statemachine/certs`.
        mutual: whether a client has to show a certificate that an authority in `ca.pem` has signed.
    """

    directory: Path | None = None
    mutual: bool = False

    def credentials(self) -> grpc.ServerCredentials:
        """The files as they are now.

        Raises:
            TLSFileError: one of them is not there, or is not what it should be.
        """
        directory = self.directory or _named_directory()
        certificate = _read(directory / "server.pem")
        key = _read(directory / "server-key.pem", private=True)
        authority = _read(directory / _AUTHORITY)
        return grpc.ssl_server_credentials(
            [(key, certificate)], authority if self.mutual else None, require_client_auth=self.mutual
        )


@attrs.frozen
class ClientTLS:
    """What a client trusts, and what it shows.

    Attributes:
        authority: a file with the certificates to trust; None for the system's.
        certificate: a file with the client's own certificate, for services that ask for one.
        key: a file with its key.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """The files as they are now.

        Raises:
            TLSFileError: one of them is not there, or is not what it should be.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.authority is None else _read(self.authority),
            private_key=None if self.key is None else _read(self.key, private=True),
            certificate_chain=None if self.certificate is None else _read(self.certificate),
        )


def _named_directory() -> Path:
    return Path(os.environ.get(TLS_DIRECTORY_VARIABLE) or DEFAULT_TLS_DIRECTORY)


def _read(file: Path, *, private: bool = False) -> bytes:
    """A file in PEM. gRPC itself would only tell that the handshake fails, when there is a client."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TLSFileError(file, error.strerror or str(error)) from error
    wanted = _PRIVATE if private else "CERTIFICATE-----"
    if wanted.encode() not in content:
        what = "private key" if private else "certificate"
        raise TLSFileError(file, f"it holds no {what} in PEM")
    return content
