"""Amazon SQS: events from a queue, outcomes to a queue. Needs the extra `sqs`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypedDict, cast

import attrs

from hsm.engine.clock import from_nanos
from hsm.fsm.service.errors import QueueError
from hsm.fsm.service.intake import Delivery
from hsm.fsm.service.messages import encode_response
from persistence.proto.statemachine_pb2 import EventResponse

try:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as _error:
    raise ImportError(
        "Amazon SQS needs aiobotocore: pip install 'hsm-toolkit[sqs]'", name=_error.name
    ) from _error

if TYPE_CHECKING:
    from types_aiobotocore_sqs.client import SQSClient
    from types_aiobotocore_sqs.type_defs import MessageAttributeValueTypeDef, MessageTypeDef

__all__ = ["SQSOptions", "SQSPublisher", "SQSQueue", "sqs_publisher", "sqs_queue"]

_MOST_IN_A_BATCH: Final = 10
_ANSWER_SECONDS: Final = 10
# What a message may weigh is 256 KiB, attributes included; a reason needs less.
_MOST_REASON_CHARACTERS: Final = 1024
_FIFO: Final = ".fifo"


@attrs.frozen
class SQSOptions:
    """Where queues are. What is left out comes from the environment (`AWS_REGION`, `AWS_ACCESS_KEY_ID` ...).

    Attributes:
        endpoint_url: of a server that speaks the protocol; None for Amazon's.
        region: of the queues.
        wait: how long a poll waits for a message, up to 20 s; an orderly end waits for the last poll.
        visibility: how long a delivered message stays hidden from others; extended while it is worked on.
    """

    endpoint_url: str | None = None
    region: str | None = None
    wait: timedelta = timedelta(seconds=5)
    visibility: timedelta = timedelta(seconds=30)


@asynccontextmanager
async def sqs_queue(
    queue: str,
    options: SQSOptions | None = None,
    *,
    dead_letters: str | None = None,
    session: AioSession | None = None,
) -> AsyncGenerator[SQSQueue, None]:
    """A queue of events, until the block ends.

    Args:
        queue: its name or URL. In a FIFO queue the events of a machine should be in one message group.
        options: where it is.
        dead_letters: name or URL of the queue for messages that can never be processed, with the attribute
            `reason`. None lets them stay in the queue, whose own redrive policy may then move them.
        session: shared by all that use it; a new one takes a good part of a second to load.

    Raises:
        QueueError: there is no such queue, or nobody says in which region.
    """
    chosen = options or SQSOptions()
    async with _client(chosen, session) as client:
        url = await _url_of(client, queue)
        dead = None if dead_letters is None else await _url_of(client, dead_letters)
        yield SQSQueue(client, url, dead, chosen)


@asynccontextmanager
async def sqs_publisher(
    queue: str, options: SQSOptions | None = None, *, session: AioSession | None = None
) -> AsyncGenerator[SQSPublisher, None]:
    """A queue of outcomes, by name or URL, until the block ends; `session` as for `sqs_queue`.

    Raises:
        QueueError: there is no such queue, or nobody says in which region.
    """
    async with _client(options or SQSOptions(), session) as client:
        yield SQSPublisher(client, await _url_of(client, queue))


class SQSQueue:
    """A `MessageQueue` on Amazon SQS; see `sqs_queue`."""

    def __init__(self, client: SQSClient, url: str, dead_letters: str | None, options: SQSOptions) -> None:
        self._client = client
        self._url = url
        self._dead_letters = dead_letters
        self._options = options
        self._visibility_seconds = max(1, round(options.visibility.total_seconds()))

    @property
    def name(self) -> str:
        """See `MessageQueue`."""
        return self._url

    @property
    def hold(self) -> timedelta:
        """See `MessageQueue`."""
        return timedelta(seconds=self._visibility_seconds)

    async def receive(self, most: int) -> Sequence[Delivery]:
        """See `MessageQueue`."""
        with _translated(self._url):
            answer = await self._client.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=min(most, _MOST_IN_A_BATCH),
                WaitTimeSeconds=round(self._options.wait.total_seconds()),
                VisibilityTimeout=self._visibility_seconds,
                AttributeNames=["SentTimestamp", "ApproximateReceiveCount", "MessageGroupId"],
            )
        return [_delivery(message) for message in answer.get("Messages", [])]

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `MessageQueue`."""
        await self._change_visibility(deliveries, self._visibility_seconds)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """See `MessageQueue`."""
        await self._change_visibility(deliveries, 0)

    async def acknowledge(self, delivery: Delivery) -> None:
        """See `MessageQueue`."""
        with _translated(self._url):
            await self._client.delete_message(QueueUrl=self._url, ReceiptHandle=delivery.receipt)

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """See `MessageQueue`. A process that dies in between leaves the message in both queues."""
        if self._dead_letters is None:
            return False
        with _translated(self._dead_letters):
            await self._client.send_message(
                QueueUrl=self._dead_letters,
                # An empty body is refused.
                MessageBody=delivery.body or "-",
                MessageAttributes={
                    "reason": _text(reason[:_MOST_REASON_CHARACTERS]),
                    "queue": _text(self._url),
                    "message_id": _text(delivery.message_id),
                },
                **_order(self._dead_letters, "dead letters", delivery.message_id),
            )
        await self.acknowledge(delivery)
        return True

    async def _change_visibility(self, deliveries: Sequence[Delivery], seconds: int) -> None:
        for start in range(0, len(deliveries), _MOST_IN_A_BATCH):
            batch = deliveries[start : start + _MOST_IN_A_BATCH]
            with _translated(self._url):
                # What fails here was acknowledged meanwhile, or is delivered again.
                await self._client.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=[
                        {"Id": str(index), "ReceiptHandle": each.receipt, "VisibilityTimeout": seconds}
                        for index, each in enumerate(batch)
                    ],
                )


class SQSPublisher:
    """An `OutcomePublisher` on Amazon SQS; see `sqs_publisher`."""

    def __init__(self, client: SQSClient, url: str) -> None:
        self._client = client
        self._url = url

    async def publish(self, response: EventResponse) -> None:
        """See `OutcomePublisher`. On a FIFO queue the outcomes of a machine form a message group."""
        outcome = response.outcome
        machine, event = f"{outcome.config}#{outcome.id}", f"{outcome.config}#{response.event_id}"
        with _translated(self._url):
            await self._client.send_message(
                QueueUrl=self._url, MessageBody=encode_response(response), **_order(self._url, machine, event)
            )


class _Order(TypedDict, total=False):
    MessageGroupId: str
    MessageDeduplicationId: str


def _order(url: str, group: str, message: str) -> _Order:
    """Group and identity of a message, which only FIFO queues want."""
    if not url.endswith(_FIFO):
        return {}
    # Both have at most 128 characters, and not every character.
    return {"MessageGroupId": _digest(group), "MessageDeduplicationId": _digest(message)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: str) -> MessageAttributeValueTypeDef:
    return {"DataType": "String", "StringValue": value}


def _delivery(message: MessageTypeDef) -> Delivery:
    attributes = message.get("Attributes", {})
    return Delivery(
        receipt=message.get("ReceiptHandle", ""),
        message_id=message.get("MessageId", ""),
        body=message.get("Body"),
        sent=from_nanos(int(attributes.get("SentTimestamp", 0)) * 1_000_000),
        count=int(attributes.get("ApproximateReceiveCount", 1)),
    )


class _Session(Protocol):
    """The one service of Amazon's that we use; the stubs have all of them."""

    def create_client(
        self,
        service_name: Literal["sqs"],
        region_name: str | None = None,
        *,
        endpoint_url: str | None = None,
        config: AioConfig | None = None,
    ) -> AbstractAsyncContextManager[SQSClient]: ...


@asynccontextmanager
async def _client(options: SQSOptions, shared: AioSession | None) -> AsyncGenerator[SQSClient, None]:
    config = AioConfig(
        # Longer than the longest poll.
        read_timeout=round(options.wait.total_seconds()) + _ANSWER_SECONDS,
        connect_timeout=_ANSWER_SECONDS,
        max_pool_connections=50,
        # Whoever calls tries again by himself.
        retries={"mode": "standard", "total_max_attempts": 2},
    )
    with _translated("Amazon SQS"):
        session = cast("_Session", shared or AioSession())
        opening = session.create_client(
            "sqs", region_name=options.region, endpoint_url=options.endpoint_url, config=config
        )
        client = await opening.__aenter__()
    try:
        yield client
    finally:
        await opening.__aexit__(None, None, None)


async def _url_of(client: SQSClient, queue: str) -> str:
    with _translated(queue):
        if "://" in queue:
            await client.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
            return queue
        answer = await client.get_queue_url(QueueName=queue)
    return answer["QueueUrl"]


@contextmanager
def _translated(queue: str) -> Generator[None, None, None]:
    try:
        yield
    except (BotoCoreError, ClientError, OSError) as error:
        raise QueueError(f"{queue}: {error}") from error
