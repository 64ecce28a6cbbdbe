"""What the commands of `hsm fsm` talk to, as options: a service, or a database without one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import attrs
import click

from hsm.cli._database import URL_VARIABLE, named_by_environment

__all__ = [
    "SECONDS",
    "DatabaseOptions",
    "KeepingOptions",
    "TargetOptions",
    "database_options",
    "target_options",
    "text",
]

SECONDS: Final = click.FloatRange(0, 604800)
"""A duration, up to a week."""


def text(value: str) -> str:
    """A name, an id, or something else that is sent; the operating system also passes on what is no text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"{value!r} is no text in UTF-8") from None
    return value


_ADDRESS_VARIABLE: Final = "HSM_FSM_ADDR"
_AUTHORITY_VARIABLE: Final = "HSM_FSM_CA"
_DEFAULT_ADDRESS: Final = "localhost:7398"
_FROM_ENVIRONMENT: Final = "-"
_USERS_AUTHORITY: Final = "~/.fsm/certs/ca.pem"
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@attrs.frozen
class DatabaseOptions:
    """A database of machines.

    Attributes:
        url: of the database.
        redis_layout: whether it has the keys of fsm-server.
        namespace: of the machines.
    """

    url: str
    redis_layout: bool
    namespace: str


@attrs.frozen
class KeepingOptions:
    """What a store keeps, and for how long.

    Attributes:
        notify: outcomes of refused events, until somebody was told of them.
        notify_all: those of other events, too.
        history_cap: events in the history of a machine; None for all.
        event_ttl: events after their outcome, no longer than that; zero for as long.
        outcome_ttl: outcomes; zero for ever.
    """

    notify: bool = False
    notify_all: bool = False
    history_cap: int | None = None
    event_ttl: timedelta = timedelta()
    outcome_ttl: timedelta = timedelta()


@attrs.frozen
class TargetOptions:
    """What a command talks to.

    Attributes:
        address: of the service.
        database: instead of it; None for the service.
        insecure: whether the service speaks plain text.
        authority: a file with the certificates to trust; None for the system's.
        certificate: a file with our own certificate.
        key: a file with its key.
        timeout: for each call.
    """

    address: str
    database: DatabaseOptions | None
    insecure: bool
    authority: Path | None
    certificate: Path | None
    key: Path | None
    timeout: timedelta


def database_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds the options that say what a database of machines is."""
    for option in (
        click.option(
            "--redis-layout",
            is_flag=True,
            help="The database is a Redis with the keys of fsm-server, for example redis://localhost:6379/1.",
        ),
        click.option("--namespace", type=text, default="default", show_default=True, help="Of the machines."),
    ):
        command = option(command)
    return command


def target_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds the options that say what to talk to; the command gets them as one `target`."""

    @functools.wraps(command)
    def with_target(
        *,
        address: str,
        url: str | None,
        insecure: bool,
        authority: Path | None,
        certificate: Path | None,
        key: Path | None,
        timeout: float,
        redis_layout: bool,
        namespace: str,
        **others: Any,
    ) -> int:
        if (certificate is None) != (key is None):
            raise click.UsageError("--tls-cert goes with --tls-key")
        url = named_by_environment() if url == _FROM_ENVIRONMENT else url
        if redis_layout and url is None:
            raise click.UsageError("--redis-layout goes with --db")
        users = Path(_USERS_AUTHORITY).expanduser()
        target = TargetOptions(
            address=address,
            database=None if url is None else DatabaseOptions(url, redis_layout, namespace),
            insecure=insecure,
            authority=authority or (users if users.exists() else None),
            certificate=certificate,
            key=key,
            timeout=timedelta(seconds=timeout),
        )
        return command(target=target, **others)

    wrapped: Callable[..., int] = database_options(with_target)
    for option in (
        click.option(
            "--timeout",
            type=SECONDS,
            default=10.0,
            show_default=True,
            metavar="SECONDS",
            help="For each call.",
        ),
        click.option("--tls-key", "key", type=_FILE, metavar="FILE", help="Key of our own certificate."),
        click.option(
            "--tls-cert",
            "certificate",
            type=_FILE,
            metavar="FILE",
            help="Our own certificate, for a service that asks for one.",
        ),
        click.option(
            "--tls-ca",
            "authority",
            type=_FILE,
            metavar="FILE",
            envvar=_AUTHORITY_VARIABLE,
            show_envvar=True,
            help=f"The certificates to trust; left out, {_USERS_AUTHORITY} if it exists, else the system's.",
        ),
        click.option("--insecure", is_flag=True, help="Speak plain text with the service."),
        click.option(
            "--db",
            "url",
            is_flag=False,
            flag_value=_FROM_ENVIRONMENT,
            metavar="[URL]",
            help=f"Use this database, without a service; without URL, the one in {URL_VARIABLE}.",
        ),
        click.option(
            "--addr",
            "address",
            default=_DEFAULT_ADDRESS,
            envvar=_ADDRESS_VARIABLE,
            show_envvar=True,
            show_default=True,
            metavar="HOST:PORT",
            help="Of the service.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped
