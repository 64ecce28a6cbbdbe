"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from hsm.cli._database import URL_VARIABLE

__all__ = ["database_option"]

CommandT = TypeVar("CommandT", bound=Callable[..., object])


def database_option(text: str) -> Callable[[CommandT], CommandT]:
    """Adds `--db`, which has to be given, here or by the environment; `text` says what it is the URL of."""
    return click.option(
        "--db", "url", required=True, metavar="URL", envvar=URL_VARIABLE, show_envvar=True, help=text
    )
