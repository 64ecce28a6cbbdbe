"""`hsm ping-registry ...`: the commands and their arguments."""

from __future__ import annotations

from uuid import UUID

import click

from hsm.cli import _ping_registry
from hsm.cli._options import database_option
from hsm.cli._running import out, run_command
from persistence.journal import EventId

__all__ = ["ping_registry"]


_database = database_option("Of the database that all participants share.")
_namespace = click.option(
    "--namespace", default=_ping_registry.NAMESPACE, show_default=True, help="Of the histories."
)
_registry = click.argument("registry")
_workflow = click.option(
    "--workflow", type=click.UUID, required=True, metavar="UUID", help="Of the workflow."
)
_pings = click.option(
    "--pings", type=click.IntRange(0, 1000), default=3, show_default=True, help="To each workflow."
)
_interval = click.option(
    "--interval",
    type=click.FloatRange(0, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between pings.",
)


@click.group("ping-registry", short_help="An example: a workflow made of events.")
def ping_registry() -> None:
    """Ask the servers of a registry whether they are there: an example of a workflow made of events."""


@ping_registry.command("serve-registry", short_help="Run the daemon of a registry.")
@_database
@_namespace
@click.option(
    "--window",
    type=click.FloatRange(0, 86400),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="From the start of a workflow to its summary.",
)
@_pings
@_interval
@_registry
def serve_registry(
    url: str, namespace: str, window: float, pings: int, interval: float, registry: str
) -> int:
    """Run the daemon of REGISTRY: it pings, summarises, and completes what a crash has left."""
    return run_command(
        _ping_registry.serve_registry(
            out(), url, namespace, registry, window=window, pings=pings, interval=interval
        )
    )


@ping_registry.command("serve-server")
@_database
@_namespace
@_pings
@_interval
@_registry
@click.argument("name")
def serve_server(url: str, namespace: str, pings: int, interval: float, registry: str, name: str) -> int:
    """Run the server NAME of REGISTRY."""
    return run_command(
        _ping_registry.serve_server(out(), url, namespace, registry, name, pings=pings, interval=interval)
    )


@ping_registry.command()
@_database
@_namespace
@click.option(
    "--workflow",
    type=click.UUID,
    metavar="UUID",
    help="Unless given, it follows from the request's id, or is made.",
)
@click.option("--expect", "expected", multiple=True, metavar="NAME", help="A server that has to ping.")
@click.option(
    "--request-id",
    default="",
    help="The same request is carried out once; the workflow's id unless given.",
)
@_registry
def begin(
    url: str,
    namespace: str,
    workflow: UUID | None,
    expected: tuple[str, ...],
    request_id: str,
    registry: str,
) -> int:
    """Begin a workflow in REGISTRY."""
    return run_command(
        _ping_registry.begin(
            out(), url, namespace, registry, workflow=workflow, expected=expected, request_id=request_id
        )
    )


@ping_registry.command()
@_database
@_namespace
@_workflow
@click.option(
    "--wait",
    is_flag=False,
    flag_value=10.0,
    type=click.FloatRange(0, 86400),
    metavar="[SECONDS]",
    help="Until there is a summary or an abort; 10 seconds at most unless given.",
)
@_registry
def get(url: str, namespace: str, workflow: UUID, wait: float | None, registry: str) -> int:
    """Print the pings and the summary of a workflow.

    Exits with 1 if the servers are not well or the workflow was aborted, 2 if --wait has seen no summary.
    """
    return run_command(_ping_registry.get(out(), url, namespace, registry, workflow=workflow, wait=wait))


@ping_registry.command()
@_database
@_namespace
@_workflow
@click.option("--vid", type=EventId.parse, metavar="VERSION", help="The version that was looked at.")
@click.option("--no-vid", is_flag=True, help="Whatever the version is.")
@_registry
def commit(url: str, namespace: str, workflow: UUID, vid: EventId | None, no_vid: bool, registry: str) -> int:
    """Accept the summary of a workflow."""
    if no_vid == (vid is not None):
        raise click.UsageError("one of --vid and --no-vid has to be given")
    return run_command(_ping_registry.commit(out(), url, namespace, registry, workflow=workflow, vid=vid))


@ping_registry.command()
@_database
@_namespace
@_registry
def status(url: str, namespace: str, registry: str) -> int:
    """List the workflows of REGISTRY."""
    return run_command(_ping_registry.status(out(), url, namespace, registry))
