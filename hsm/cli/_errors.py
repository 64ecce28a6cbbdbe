"""Errors of the command line: one line each, without a traceback."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from hsm.errors import HSMError

__all__ = [
    "CommandError",
    "ConflictingLineError",
    "DamagedRowError",
    "LineError",
    "MalformedLineError",
    "OversizedLineError",
    "needing",
    "one_line",
]


class CommandError(HSMError):
    """A command cannot be carried out as it was given."""


class LineError(HSMError):
    """A line of a deliveries file is refused; the others are delivered.

    Attributes:
        line: its number, from 1.
        reason: what is wrong with it.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class MalformedLineError(LineError):
    """The line is no delivery."""


class OversizedLineError(LineError):
    """The line is longer than a line may be."""


class ConflictingLineError(LineError):
    """There is another delivery with this id."""


class DamagedRowError(LineError):
    """What the database has under this id cannot be read."""


@contextmanager
def needing(extra: str, what: str) -> Generator[None, None, None]:
    """Imports that need an extra.

    Raises:
        CommandError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "hsm").partition(".")[0] == "hsm":
            raise
        raise CommandError(f"{what} needs {error.name}: pip install 'hsm-toolkit[{extra}]'") from error


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())
