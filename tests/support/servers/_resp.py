"""The protocol of Redis and Valkey, as much as it takes to set a server up."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from tests.support.servers._tls import client_context

Reply: TypeAlias = "bytes | int | list[Reply] | None"


class ErrorReplyError(OSError):
    """The server answered with an error. An OSError, since a server that starts up refuses so too."""


def call(
    port: int, *commands: Sequence[str | bytes], password: str | None = None, ca_file: Path | None = None
) -> list[Reply]:
    """Send commands over a connection of their own."""
    if password is not None:
        return call(port, ["AUTH", password], *commands, ca_file=ca_file)[1:]
    with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as plain:
        stream = client_context(ca_file).wrap_socket(plain, server_hostname="127.0.0.1") if ca_file else plain
        with stream, stream.makefile("rb") as answers:
            return [_exchange(stream, answers, command) for command in commands]


def _exchange(stream: socket.socket, answers: BufferedReader, command: Sequence[str | bytes]) -> Reply:
    words = [word.encode() if isinstance(word, str) else word for word in command]
    stream.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
    return _read(answers)


def _read(answers: BufferedReader) -> Reply:
    line = answers.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest
        case b"-":
            raise ErrorReplyError(rest.decode())
        case b":":
            return int(rest)
        case b"$":
            return None if rest == b"-1" else answers.read(int(rest) + 2)[:-2]
        case b"*":
            return [_read(answers) for _ in range(int(rest))]
        case _:
            raise ValueError(f"not a reply that this reader knows: {line!r}")
