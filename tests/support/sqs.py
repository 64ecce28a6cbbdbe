"""A server that speaks the protocol of Amazon SQS, in a process of its own."""

from __future__ import annotations

import base64
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import attrs
from aiobotocore.session import AioSession

from persistence.proto.statemachine_pb2 import EventRequest, EventResponse
from tests.support.servers._process import Folder, await_that, free_port

if TYPE_CHECKING:
    from types_aiobotocore_sqs.client import SQSClient

REGION = "us-east-1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}


@contextmanager
def sqs_server() -> Iterator[str]:
    """The URL of a server, until the block ends."""
    folder = Folder(None)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = None
    try:
        process = folder.spawn(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], folder.path / "log"
        )
        await_that(lambda: _answers(url), "the queue server does not answer")
        yield url
    finally:
        if process is not None:
            process.kill()
            process.wait()
        folder.forget()
        folder.remove()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/moto-api/data.json", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@attrs.frozen
class Queues:
    """Makes queues, and does with them what other programs do."""

    client: SQSClient

    async def new(self, name: str, **attributes: str) -> str:
        """The URL of a new queue."""
        if name.endswith(".fifo"):
            attributes |= {"FifoQueue": "true"}
        return (await self.client.create_queue(QueueName=name, Attributes=attributes))["QueueUrl"]  # type: ignore[arg-type]

    async def send(self, url: str, body: EventRequest | str, **order: str) -> str:
        """Send a message; its id."""
        text = body if isinstance(body, str) else base64.b64encode(body.SerializeToString()).decode()
        return (await self.client.send_message(QueueUrl=url, MessageBody=text, **order))["MessageId"]  # type: ignore[arg-type]

    async def take(self, url: str) -> list[Any]:
        """All messages that can be received now; they are deleted."""
        taken: list[Any] = []
        while messages := (
            await self.client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], WaitTimeSeconds=0
            )
        ).get("Messages"):
            taken += messages
            for message in messages:
                await self.client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return taken

    async def responses(self, url: str) -> list[EventResponse]:
        """All outcomes that can be received now."""
        return [
            EventResponse.FromString(base64.b64decode(message["Body"])) for message in await self.take(url)
        ]

    async def count(self, url: str) -> tuple[int, int]:
        """How many messages can be received, and how many are hidden while somebody works on them."""
        found = (await self.client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]))["Attributes"]
        return (
            int(found["ApproximateNumberOfMessages"]),
            int(found["ApproximateNumberOfMessagesNotVisible"]),
        )


@asynccontextmanager
async def queues(url: str, session: AioSession | None = None) -> AsyncIterator[Queues]:
    """Queues of a server."""
    async with (session or AioSession()).create_client(
        "sqs",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    ) as client:
        yield Queues(client)
