"""`hsm fsm serve`: the service as a process."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import attrs
from rich.console import Console

from hsm.cli._errors import CommandError, needing
from hsm.cli._fsm_options import DatabaseOptions, KeepingOptions
from hsm.cli._fsm_target import open_machines
from hsm.fsm.service import (
    FSMServer,
    MessageQueue,
    OutcomePublisher,
    ServerOptions,
    ServerTLS,
    ServiceTelemetry,
    TLSFileError,
)

__all__ = ["ServeOptions", "configure_logging", "serve"]

_LOG: Final = logging.getLogger("hsm.fsm.service")
# A message that has ended so many processes, or was given back so often, is looked at by a person.
_MOST_DELIVERIES: Final = 20


@attrs.frozen
class ServeOptions:
    """What to serve, and where; see `hsm fsm serve --help`. Without `tls_directory` it is plain text."""

    database: DatabaseOptions
    listen: str
    tls_directory: Path | None
    mutual_tls: bool
    timeout: timedelta
    grace: timedelta
    concurrency: int
    keeping: KeepingOptions
    sqs_events: str | None
    sqs_dead_letters: str | None
    sqs_outcomes: str | None
    sqs_visibility: timedelta
    sqs_endpoint: str | None
    sqs_region: str | None
    stream_url: str
    stream_events: str | None
    stream_group: str
    stream_consumer: str | None
    stream_dead_letters: str | None
    stream_outcomes: str | None
    otel: bool


async def serve(out: Console, options: ServeOptions) -> int:
    """Serve until a signal.

    Raises:
        HSMError, PersistenceError: the database, a queue or the address cannot be used.
    """
    tls = (
        None if options.tls_directory is None else ServerTLS(options.tls_directory, mutual=options.mutual_tls)
    )
    async with AsyncExitStack() as stack:
        queues, publisher = await _messages(stack, options)
        store = await stack.enter_async_context(
            open_machines(
                options.database,
                options.keeping
                if publisher
                else attrs.evolve(options.keeping, notify=False, notify_all=False),
            )
        )
        server = FSMServer(
            store,
            ServerOptions(
                address=options.listen,
                tls=tls,
                timeout=options.timeout,
                grace=options.grace,
                concurrency=options.concurrency,
                most_deliveries=_MOST_DELIVERIES,
            ),
            queues=queues,
            publisher=publisher,
            namespace=options.database.namespace,
            telemetry=_telemetry() if options.otel else None,
        )
        stop = _stop_signal()
        try:
            await stack.enter_async_context(server)
        except TLSFileError as error:
            raise CommandError(f"{error}; without TLS: --insecure") from error
        host = options.listen.rpartition(":")[0]
        # What a program waits for that has started us.
        out.print(f"serving on {host}:{server.port}", markup=False, highlight=False, soft_wrap=True)
        await server.run(stop)
        _LOG.info("ending")
    return 0


def configure_logging(level: str, *, as_json: bool) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Json() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # They tell of every request.
    for name in ("aiobotocore", "botocore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _Json(logging.Formatter):
    """A record as a JSON object, with the fields that the library gives it."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        members |= {name: value for name, value in vars(record).items() if name.startswith("hsm_")}
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members, ensure_ascii=False, default=str)


async def _messages(
    stack: AsyncExitStack, options: ServeOptions
) -> tuple[list[MessageQueue], OutcomePublisher | None]:
    """The queues to take events from, and who is told the outcomes."""
    queues: list[MessageQueue] = []
    publisher: OutcomePublisher | None = None
    if options.sqs_events or options.sqs_outcomes:
        with needing("sqs", "Amazon SQS"):
            from aiobotocore.session import AioSession  # noqa: PLC0415 - needs an extra

            from hsm.fsm.service import sqs  # noqa: PLC0415 - likewise

        session = AioSession()
        where = sqs.SQSOptions(
            endpoint_url=options.sqs_endpoint, region=options.sqs_region, visibility=options.sqs_visibility
        )
        if options.sqs_events:
            opened = sqs.sqs_queue(
                options.sqs_events, where, dead_letters=options.sqs_dead_letters, session=session
            )
            queues.append(await stack.enter_async_context(opened))
        if options.sqs_outcomes:
            publisher = await stack.enter_async_context(
                sqs.sqs_publisher(options.sqs_outcomes, where, session=session)
            )
    if options.stream_events or options.stream_outcomes:
        with needing("redis", "a stream"):
            from hsm.fsm.service import redis_streams  # noqa: PLC0415 - needs an extra

        url = options.stream_url
        if options.stream_events:
            how = redis_streams.StreamOptions(
                group=options.stream_group,
                consumer=options.stream_consumer,
                dead_letters=options.stream_dead_letters,
            )
            entered = redis_streams.redis_stream(url, options.stream_events, how)
            queues.append(await stack.enter_async_context(entered))
        if options.stream_outcomes:
            publisher = await stack.enter_async_context(
                redis_streams.stream_publisher(url, options.stream_outcomes)
            )
    return queues, publisher


def _telemetry() -> ServiceTelemetry:
    with needing("otel", "--otel"):
        from hsm.fsm.service.otel import OpenTelemetry  # noqa: PLC0415 - needs an extra

    return OpenTelemetry()


def _stop_signal() -> asyncio.Event:
    """Is set by the first signal; the second one has its usual effect."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_to_stop() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, begin_to_stop)
    return stop
