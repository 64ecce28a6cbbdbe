"""TLS of the service: which files hold its certificate, and whether clients have to show one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias, cast

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
_LOG: Final = logging.getLogger("hsm.fsm.service")


@attrs.frozen
class ServerTLS:
    """The service's certificate, `server.pem` with `server-key.pem`, and `ca.pem`, which vouches for clients.

    TLS 1.2 is the oldest version that is spoken. The files are read again for each new connection, so that a
    certificate can be renewed, or an authority exchanged, while the service runs; connections that are open
    stay. Files that cannot be used then, or do not belong together, are left aside for those from before.

    Attributes:
        directory: of the files; None for that in `TLS_CONFIG_DIR`, or else `/etc/statemachine/certs`.
        mutual: whether a client has to show a certificate that an authority in `ca.pem` has signed.
    """

    directory: Path | None = None
    mutual: bool = False

    def credentials(self) -> grpc.ServerCredentials:
        """The files as they are now, and as they will be.

        Raises:
            TLSFileError: one of them is not there, or is not what it should be.
        """
        files = _ServerFiles(self.directory or _named_directory(), mutual=self.mutual)
        # The stubs leave out that the answer may be None: nothing is new.
        renewed = cast("Callable[[], grpc.ServerCertificateConfiguration]", files.renewed)
        return grpc.dynamic_ssl_server_credentials(
            files.read(), renewed, require_client_authentication=self.mutual
        )


_Contents: TypeAlias = tuple[bytes, bytes, bytes]


class _ServerFiles:
    """The files of a server, which may be replaced at any time."""

    def __init__(self, directory: Path, *, mutual: bool) -> None:
        self._directory = directory
        self._mutual = mutual
        self._contents: _Contents | None = None
        self._complaint = ""

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What they hold.

        Raises:
            TLSFileError: one of them is not there, or is not what it should be.
        """
        self._contents = self._read()
        return self._configuration(self._contents)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What they hold, if that is new; called by gRPC for each connection, in a thread of its own."""
        try:
            contents = self._read()
        except TLSFileError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _LOG.warning("the certificate from before stays in use: %s", error)
            return None
        self._complaint = ""
        if contents == self._contents:
            return None
        self._contents = contents
        _LOG.info("the certificate in %s was renewed", self._directory)
        return self._configuration(contents)

    def _read(self) -> _Contents:
        certificate = _read(self._directory / "server.pem")
        key = _read(self._directory / "server-key.pem", private=True)
        return certificate, key, _read(self._directory / _AUTHORITY)

    def _configuration(self, contents: _Contents) -> grpc.ServerCertificateConfiguration:
        certificate, key, authority = contents
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], authority if self._mutual else None
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
