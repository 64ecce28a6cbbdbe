"""The commands and their arguments; how errors end a command."""

from __future__ import annotations

import logging
import os
import resource
import sys
from pathlib import Path
from typing import Final

import click

from hsm.cli import _deliver, _demo, _inspect, _stores
from hsm.cli._database import NAMESPACE, URL_VARIABLE, named_by_environment
from hsm.cli._fsm import fsm
from hsm.cli._options import database_option
from hsm.cli._ping_registry_commands import ping_registry
from hsm.cli._running import UNUSABLE, err, out, run_command, tell
from hsm.errors import HSMError
from persistence.errors import PersistenceError

__all__ = ["run"]

_INTERRUPTED: Final = 130
_SWITCH_SECONDS: Final = 0.0005
_FROM_ENVIRONMENT: Final = "-"

_database = database_option(
    "Of the database, for example sqlite:///deliveries.db; `hsm stores` lists what there is."
)
_registry = click.option(
    "--registry",
    metavar="MODULE:NAME",
    help="What the database is written with: a hsm.Registry, or a function without arguments that makes one."
    " Left out, the machines of `hsm deliver` are known, and of others what can be told without.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hsm-toolkit", prog_name="hsm")
def cli() -> None:
    """Durable state machines: deliver webhooks, serve configured machines, and look into a database."""


@cli.command(short_help="Deliver the requests in a file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_database
@click.option(
    "--concurrency", type=click.IntRange(1), default=32, show_default=True, help="At once to a destination."
)
@click.option(
    "--first-retry",
    type=click.FloatRange(0.001, 86400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause after the first failed attempt; doubled after each other.",
)
@click.option(
    "--longest-retry",
    type=click.FloatRange(0.001, 604800),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest pause.",
)
@click.option(
    "--patience",
    type=click.FloatRange(0, 604800),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the database may be away before the run gives up.",
)
def deliver(
    file: Path, url: str, concurrency: int, first_retry: float, longest_retry: float, patience: float
) -> int:
    """Deliver the requests in FILE, one JSON object on each line.

    Killed at any time and run again, it goes on where it was. Exits with 0 if everything was delivered, 1 if
    deliveries failed for good or lines were refused, and 2 if the arguments or the database cannot be used.
    """
    options = _deliver.DeliverOptions(
        concurrency=concurrency, first_retry=first_retry, longest_retry=longest_retry, patience=patience
    )
    _allow_many_connections()
    _leave_outages_to_the_run()
    return run_command(_deliver.deliver(file, url, options, out(), err()))


@cli.command()
@_database
@_registry
@click.option("--namespace", default="", help="Only executions of this namespace.")
@click.option("--state", help="List the executions in this state, too.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Executions to list.")
def status(url: str, registry: str | None, namespace: str, state: str | None, limit: int) -> int:
    """Count the executions of a database by state."""
    return run_command(_inspect.status(out(), url, registry, namespace, state, limit))


@cli.command()
@_database
@_registry
@click.option("--namespace", default=NAMESPACE, show_default=True, help="Of the execution.")
@click.argument("id_", metavar="ID")
def show(url: str, registry: str | None, namespace: str, id_: str) -> int:
    """Draw the execution ID with its pending tasks."""
    return run_command(_inspect.show(out(), url, registry, namespace, id_))


@cli.command()
@_database
@_registry
@click.option("--replay", is_flag=True, help="Put the tasks named back into their queues.")
@click.argument("tasks", nargs=-1, metavar="[TASK_ID]...")
def dead(url: str, registry: str | None, replay: bool, tasks: tuple[str, ...]) -> int:
    """List the tasks that are not tried again, or replay some."""
    if replay != bool(tasks):
        raise click.UsageError("--replay goes with the ids of the tasks to replay")
    return run_command(_inspect.dead(out(), url, registry, tasks))


@cli.command(short_help="See that a SIGKILL loses nothing.")
@click.option("--count", type=click.IntRange(1, 100_000), default=500, show_default=True, help="Deliveries.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Leave the files here.")
@click.option(
    "--db",
    "url",
    is_flag=False,
    flag_value=_FROM_ENVIRONMENT,
    metavar="[URL]",
    help=f"Deliver from this database, in which the deliveries stay; without URL, from {URL_VARIABLE}."
    " Left out, from a new SQLite file.",
)
def demo(count: int, keep: Path | None, url: str | None) -> int:
    """Deliver to a flaky receiver, with a SIGKILL in the middle, and check that nothing is lost."""
    with _demo.demo_folder(keep) as folder:
        return run_command(_demo.demo(out(), count, folder, _chosen(url)))


@cli.command(short_help="List the databases that can be used.")
@click.option(
    "--db",
    "url",
    is_flag=False,
    flag_value=_FROM_ENVIRONMENT,
    metavar="[URL]",
    help=f"Open this database and ask it; without URL, the one in {URL_VARIABLE}.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs; sizes in bytes.")
def stores(url: str | None, as_json: bool) -> int:
    """List the databases that can be used, or say what one of them can do and can lose."""
    chosen = _chosen(url)
    if chosen is None:
        return _stores.list_stores(out(), as_json=as_json)
    return run_command(_stores.describe_store(out(), chosen, as_json=as_json))


cli.add_command(fsm)
cli.add_command(ping_registry)


def _chosen(url: str | None) -> str | None:
    """The URL of a command that uses the one in the environment only if it is told to."""
    return named_by_environment() if url == _FROM_ENVIRONMENT else url


def run() -> int:
    """Run the command line; the exit status."""
    # A waiting writer thread gets the interpreter sooner from a busy event loop.
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        status_: object = cli(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except (HSMError, PersistenceError) as error:
        tell(error)
        return UNUSABLE
    except BrokenPipeError:
        # Nobody reads on, as in `hsm status | head`; the interpreter shall not try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status_ if isinstance(status_, int) else 0


def _leave_outages_to_the_run() -> None:
    """It says once that the database is away; the engine and the client library need not."""
    logging.getLogger("hsm.engine.outages").setLevel(logging.CRITICAL)
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def _allow_many_connections() -> None:
    """Each destination may have its connections open: as many files as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
