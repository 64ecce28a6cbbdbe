"""`hsm fsm`: the commands for machines that come from configuration, and their arguments."""

from __future__ import annotations

import importlib
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import IO, Final

import click

from hsm.cli._database import URL_VARIABLE
from hsm.cli._errors import needing
from hsm.cli._fsm_options import (
    SECONDS,
    DatabaseOptions,
    KeepingOptions,
    TargetOptions,
    database_options,
    target_options,
    text,
)
from hsm.cli._running import out, run_command

__all__ = ["fsm"]

_KEPT: Final = click.FloatRange(0, 10 * 366 * 86400)

_wait = click.option(
    "--wait",
    type=SECONDS,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="For the outcome of an event; with 0 it is only sent.",
)
_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of YAML.")


@click.group(short_help="Serve configured machines, and talk to them.")
def fsm() -> None:
    """Machines that come from configuration: serve them, and talk to them.

    All but `serve` talk to a service, or with --db to a database. They exit with 0 if all went well, 1 if
    something was refused or is not there, 2 if the arguments, the service or the database cannot be used,
    and 3 if an event has no outcome yet.
    """


@fsm.command(short_help="Store machines from YAML, and send events.")
@click.argument("file", type=click.File("rb"), metavar="FILE")
@click.option("--replace", is_flag=True, help="Write machines anew that exist already.")
@_wait
@target_options
def apply(file: IO[bytes], replace: bool, wait: float, target: TargetOptions) -> int:
    """Store the configurations and machines of a YAML FILE (- for standard input), and send its events.

    It holds documents of the kinds Configuration, FiniteStateMachine and EventRequest. All of them are read
    before the first is applied. A configuration that exists with this content is left as it is.
    """
    command = _load("_fsm_apply").apply(
        out(), file.read(), file.name, replace, timedelta(seconds=wait), target
    )
    return run_command(command)


@fsm.command(short_help="Send an event to a machine.")
@click.argument("configuration", type=text, metavar="CONFIGURATION")
@click.argument("machine", type=text, metavar="ID")
@click.argument("event", type=text, metavar="EVENT")
@click.option(
    "--event-id", type=text, default="", help="The same id again does nothing; left out, a new one."
)
@click.option("--details", type=text, default="", help="What the event carries.")
@click.option("--originator", type=text, default="", help="Who sends it.")
@click.option(
    "--expect-revision",
    type=click.IntRange(0),
    help="Refuse the event unless the machine is at this revision.",
)
@_wait
@target_options
def send(
    configuration: str,
    machine: str,
    event: str,
    event_id: str,
    details: str,
    originator: str,
    expect_revision: int | None,
    wait: float,
    target: TargetOptions,
) -> int:
    """Send an EVENT to the machine ID of a CONFIGURATION (its name), and say what became of it."""
    module = _load("_fsm_apply")
    request = module.new_request(
        configuration, machine, event, event_id, details, originator, expect_revision
    )
    return run_command(module.send(out(), request, timedelta(seconds=wait), target))


@fsm.group()
def get() -> None:
    """Show a configuration, a machine, an event, or its outcome."""


@get.command("configuration", short_help="Show a configuration, or list them.")
@click.argument("name", type=text, required=False, default="", metavar="[NAME[:VERSION]]")
@_json
@target_options
def get_configuration(name: str, as_json: bool, target: TargetOptions) -> int:
    """Show a configuration, or list all versions of a NAME, or all names."""
    return run_command(_load("_fsm_show").configuration(out(), name, as_json, target))


@get.command("machine", short_help="Show a machine with its history.")
@click.argument("configuration", type=text, metavar="CONFIGURATION")
@click.argument("machine", type=text, metavar="ID")
@_json
@target_options
def get_machine(configuration: str, machine: str, as_json: bool, target: TargetOptions) -> int:
    """Show the machine ID of a CONFIGURATION (its name) with its history."""
    return run_command(_load("_fsm_show").machine(out(), configuration, machine, as_json, target))


@get.command("event")
@click.argument("configuration", type=text, metavar="CONFIGURATION")
@click.argument("event_id", type=text, metavar="EVENT_ID")
@_json
@target_options
def get_event(configuration: str, event_id: str, as_json: bool, target: TargetOptions) -> int:
    """Show an event as it was sent."""
    return run_command(_load("_fsm_show").event(out(), configuration, event_id, as_json, target))


@get.command("outcome")
@click.argument("configuration", type=text, metavar="CONFIGURATION")
@click.argument("event_id", type=text, metavar="EVENT_ID")
@_json
@target_options
def get_outcome(configuration: str, event_id: str, as_json: bool, target: TargetOptions) -> int:
    """Show what became of an event."""
    return run_command(_load("_fsm_show").outcome(out(), configuration, event_id, as_json, target))


@fsm.command(short_help="Count machines by state.")
@click.argument("configuration", type=text, metavar="CONFIGURATION")
@click.option("--list", "state", type=text, metavar="STATE", help="List the machines in this state instead.")
@_json
@target_options
def states(configuration: str, state: str | None, as_json: bool, target: TargetOptions) -> int:
    """Count the machines of a CONFIGURATION (its name) by state."""
    return run_command(_load("_fsm_show").states(out(), configuration, state, as_json, target))


@fsm.command(short_help="Draw a configuration or a machine.")
@click.argument("configuration", type=text, metavar="NAME:VERSION")
@click.option(
    "--format",
    "language",
    type=click.Choice(["mermaid", "dot", "svg"]),
    default="mermaid",
    show_default=True,
    help="svg needs the program `dot` of Graphviz.",
)
@click.option("--machine", type=text, default="", metavar="ID", help="Show where this machine is, and was.")
@target_options
def diagram(configuration: str, language: str, machine: str, target: TargetOptions) -> int:
    """Draw a configuration, or a machine that follows it, to standard output."""
    return run_command(_load("_fsm_diagram").draw(configuration, machine, language, target))


@fsm.command(short_help="Serve machines by gRPC and from queues.")
@click.option(
    "--db",
    "url",
    required=True,
    metavar="URL",
    envvar=URL_VARIABLE,
    show_envvar=True,
    help="Of the database, for example sqlite:///machines.db; `hsm stores` lists what there is.",
)
@database_options
@click.option(
    "--listen", default="localhost:7398", show_default=True, metavar="HOST:PORT", help="0 is a free port."
)
@click.option(
    "--tls-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="TLS_CONFIG_DIR",
    show_envvar=True,
    default="/etc/statemachine/certs",
    show_default=True,
    help="With server.pem, server-key.pem and ca.pem.",
)
@click.option("--mutual-tls", is_flag=True, help="Ask clients for a certificate that ca.pem vouches for.")
@click.option("--insecure", is_flag=True, help="Speak plain text.")
@click.option(
    "--timeout", type=SECONDS, default=10.0, show_default=True, metavar="SECONDS", help="Of a call."
)
@click.option(
    "--grace", type=SECONDS, default=20.0, show_default=True, metavar="SECONDS", help="For an orderly end."
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=100, show_default=True, help="Messages at once."
)
@click.option("--all-outcomes", is_flag=True, help="Publish the outcomes of events that succeed, too.")
@click.option(
    "--history-cap", type=click.IntRange(0), help="Events that a machine's history keeps, else all."
)
@click.option(
    "--keep-events",
    type=_KEPT,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Events, after their outcome; 0 for as long as the outcome.",
)
@click.option(
    "--keep-outcomes",
    type=_KEPT,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Outcomes, and with them the answer to an event that comes again; 0 for ever.",
)
@click.option("--sqs-events", metavar="QUEUE", help="Take events from this queue (name or URL).")
@click.option("--sqs-dead-letters", metavar="QUEUE", help="For its messages that nobody can process.")
@click.option("--sqs-outcomes", metavar="QUEUE", help="Publish outcomes to this queue.")
@click.option(
    "--sqs-visibility",
    type=click.FloatRange(1, 43200),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a message is ours; extended while it is worked on.",
)
@click.option("--sqs-endpoint", metavar="URL", help="Of another server than Amazon's.")
@click.option("--sqs-region", metavar="REGION", envvar="AWS_REGION", show_envvar=True, help="Of the queues.")
@click.option(
    "--stream-url", metavar="URL", help="Redis server of the streams, for example redis://host:6379/0."
)
@click.option("--stream-events", metavar="KEY", help="Take events from this stream.")
@click.option("--stream-group", default="hsm", show_default=True, help="Consumer group.")
@click.option("--stream-consumer", help="Our name in the group; left out, a new one each time.")
@click.option("--stream-dead-letters", metavar="KEY", help="For its entries that nobody can process.")
@click.option("--stream-outcomes", metavar="KEY", help="Publish outcomes to this stream.")
@click.option("--otel", is_flag=True, help="Measure and trace with the OpenTelemetry of this process.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option("--log-json", is_flag=True, help="A JSON object for each log record.")
def serve(
    url: str,
    redis_layout: bool,
    namespace: str,
    listen: str,
    tls_dir: Path,
    mutual_tls: bool,
    insecure: bool,
    timeout: float,
    grace: float,
    concurrency: int,
    all_outcomes: bool,
    history_cap: int | None,
    keep_events: float,
    keep_outcomes: float,
    sqs_events: str | None,
    sqs_dead_letters: str | None,
    sqs_outcomes: str | None,
    sqs_visibility: float,
    sqs_endpoint: str | None,
    sqs_region: str | None,
    stream_url: str | None,
    stream_events: str | None,
    stream_group: str,
    stream_consumer: str | None,
    stream_dead_letters: str | None,
    stream_outcomes: str | None,
    otel: bool,
    log_level: str,
    log_json: bool,
) -> int:
    """Serve the machines of a database by gRPC, and take events from queues, until SIGTERM or SIGINT.

    Then it accepts nothing more, and ends when what it has accepted is done. Killed at any time and started
    again, it goes on where it was.
    """
    if insecure and mutual_tls:
        raise click.UsageError("--insecure does not go with --mutual-tls")
    if (stream_events or stream_outcomes) and not stream_url:
        raise click.UsageError("--stream-events and --stream-outcomes need --stream-url")
    if sqs_outcomes and stream_outcomes:
        raise click.UsageError("outcomes go to a queue or to a stream")
    module = _load("_fsm_serve")
    options = module.ServeOptions(
        database=DatabaseOptions(url, redis_layout, namespace),
        listen=listen,
        tls_directory=None if insecure else tls_dir,
        mutual_tls=mutual_tls,
        timeout=timedelta(seconds=timeout),
        grace=timedelta(seconds=grace),
        concurrency=concurrency,
        keeping=KeepingOptions(
            notify=True,
            notify_all=all_outcomes,
            history_cap=history_cap,
            event_ttl=timedelta(seconds=keep_events),
            outcome_ttl=timedelta(seconds=keep_outcomes),
        ),
        sqs_events=sqs_events,
        sqs_dead_letters=sqs_dead_letters,
        sqs_outcomes=sqs_outcomes,
        sqs_visibility=timedelta(seconds=sqs_visibility),
        sqs_endpoint=sqs_endpoint,
        sqs_region=sqs_region,
        stream_url=stream_url or "",
        stream_events=stream_events,
        stream_group=stream_group,
        stream_consumer=stream_consumer,
        stream_dead_letters=stream_dead_letters,
        stream_outcomes=stream_outcomes,
        otel=otel,
    )
    module.configure_logging(log_level, as_json=log_json)
    return run_command(module.serve(out(), options))


def _load(module: str) -> ModuleType:
    """A module that needs the extra `fsm`, which the other commands do not."""
    with needing("fsm", "this command"):
        return importlib.import_module(f"hsm.cli.{module}")
