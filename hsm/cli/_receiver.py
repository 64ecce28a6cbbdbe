"""A flaky HTTP receiver for the demo, in a process of its own: `python -m hsm.cli._receiver LOG`.

What it answers goes by the id of the delivery and by how often it has been asked, so that the end of each
delivery is known beforehand. Every answer is written to LOG before it is given. The port stands in the first
line of the standard output; the receiver ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
from aiohttp import web

__all__ = ["Behaviour", "Received", "behaviour_of", "read_log"]

_HANG_SECONDS: Final = 5.0
_TRANSIENT: Final = 2


class Behaviour(enum.Enum):
    """How the receiver treats a delivery."""

    CONFIRM = "200 at once"
    BUSY = "503 once or twice, then 200"
    LATER = "429 with Retry-After once, then 200"
    DROP = "a connection that breaks without an answer once, then 200"
    HANG = "no answer within the time-out once, then 200"
    REFUSE = "410 always"
    NEVER = "500 always"

    @property
    def confirms(self) -> bool:
        """Whether it confirms in the end."""
        return self not in {Behaviour.REFUSE, Behaviour.NEVER}


_PER_MILLE: Final = {
    Behaviour.BUSY: 120,
    Behaviour.LATER: 50,
    Behaviour.DROP: 60,
    Behaviour.HANG: 60,
    Behaviour.REFUSE: 60,
    Behaviour.NEVER: 40,
}


def behaviour_of(id_: str) -> Behaviour:
    """The same for the same id, everywhere."""
    rest = _number(id_) % 1000
    for behaviour, share in _PER_MILLE.items():
        rest -= share
        if rest < 0:
            return behaviour
    return Behaviour.CONFIRM


def _number(id_: str) -> int:
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8])


@attrs.frozen
class Received:
    """One line of the log.

    Attributes:
        id: of the delivery.
        count: how often it had come by then.
        key: the `Idempotency-Key` that came with it.
        status: what was answered; 0 for nothing.
    """

    id: str
    count: int
    key: str
    status: int


def read_log(path: Path) -> Iterator[Received]:
    """What a receiver has answered."""
    with path.open(encoding="utf-8") as log:
        for line in log:
            yield Received(**json.loads(line))


class _Receiver:
    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        self._counts: Counter[str] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        await request.read()
        id_ = request.match_info["id"]
        self._counts[id_] += 1
        count = self._counts[id_]
        behaviour = behaviour_of(id_)
        status = _status(behaviour, id_, count)
        received = Received(id_, count, request.headers.get("Idempotency-Key", ""), status)
        os.write(self._log, json.dumps(attrs.asdict(received)).encode() + b"\n")
        if status:
            headers = {"Retry-After": "1"} if status == 429 else None
            return web.Response(status=status, headers=headers)
        if behaviour is Behaviour.HANG:
            await asyncio.sleep(_HANG_SECONDS)
        assert request.transport is not None
        request.transport.abort()
        return web.Response(status=500)


def _status(behaviour: Behaviour, id_: str, count: int) -> int:
    """The answer to a request; 0 for none."""
    if behaviour is Behaviour.REFUSE:
        return 410
    if behaviour is Behaviour.NEVER:
        return 500
    if behaviour is Behaviour.BUSY and count <= 1 + _number(id_) // 1000 % _TRANSIENT:
        return 503
    if behaviour is Behaviour.LATER and count == 1:
        return 429
    if behaviour in {Behaviour.DROP, Behaviour.HANG} and count == 1:
        return 0
    return 200


async def _serve(log: Path) -> None:
    application = web.Application()
    application.router.add_route("*", "/{id}", _Receiver(log).handle)
    # A sender that was killed does not keep a handler from ending.
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)  # noqa: T201 - its way to tell
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()
    loop.remove_reader(sys.stdin)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
