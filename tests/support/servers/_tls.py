"""Certificates for servers on loopback, made when they are needed."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Self

import attrs

from tests.support.servers._process import Folder


@attrs.frozen
class Certificate:
    """The files of a server's certificate, and of the authority of its own that has signed it."""

    ca: Path
    chain: Path
    key: Path

    @classmethod
    def issue(cls, folder: Folder) -> Self:
        """A certificate for 127.0.0.1 and localhost."""
        import trustme

        authority = trustme.CA()
        own = authority.issue_cert("127.0.0.1", "localhost")
        return cls(
            ca=folder.write("ca.pem", authority.cert_pem.bytes()),
            chain=folder.write("server.pem", b"".join(blob.bytes() for blob in own.cert_chain_pems)),
            key=folder.write("server.key", own.private_key_pem.bytes()),
        )


def client_context(ca_file: Path) -> ssl.SSLContext:
    """What a client needs that trusts the authority, and nobody else."""
    return ssl.create_default_context(cafile=ca_file)
