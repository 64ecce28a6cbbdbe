"""`hsm demo`: deliveries to a flaky receiver, a SIGKILL in the middle, and the books compared afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import attrs
from rich.console import Console

from hsm.cli._database import NAMESPACE, URL_VARIABLE, open_reader, open_store, refuse_memory
from hsm.cli._errors import CommandError
from hsm.cli._receiver import Behaviour, behaviour_of, read_log
from hsm.components.callback import State

__all__ = ["Books", "compare", "delivery_ids", "demo", "demo_folder", "receiver", "write_deliveries"]

_KILL_AT: Final = 0.4
"""The share of deliveries that the receiver has confirmed when the sender is killed."""
_POLL_SECONDS: Final = 0.002
_TIMEOUT_SECONDS: Final = 1.0
_HOPELESS_ATTEMPTS: Final = 3
_LARGEST_BATCH: Final = 1024 * 1024


@attrs.frozen(kw_only=True)
class Books:
    """The receiver's log beside the database.

    Attributes:
        delivered, failed: deliveries, as the database has them.
        duplicated: deliveries that the receiver has confirmed more than once.
        lost: deliveries that the receiver should have confirmed and has not, or that the database lacks.
        inconsistent: deliveries whose state is not what the receiver's answers must have made of it.
    """

    delivered: int
    failed: int
    duplicated: int
    lost: tuple[str, ...]
    inconsistent: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        """Whether nothing is lost and every state is right."""
        return not self.lost and not self.inconsistent


@contextmanager
def demo_folder(keep: Path | None) -> Generator[Path, None, None]:
    """An empty folder for a demo: the one that is to be kept, or one that goes when the block ends."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="hsm-demo-") as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise CommandError(f"{keep} is not empty")
    yield keep


async def demo(out: Console, count: int, folder: Path, url: str | None = None) -> int:
    """Play the whole story, with files in an empty folder; the exit status.

    `url` is a database that may hold other data; without it, it is a new file in the folder.
    """
    began = time.monotonic()
    database = url or f"sqlite:///{(folder / 'deliveries.db').absolute()}"
    refuse_memory(database)
    async with open_store(database):
        pass  # what is wrong with it is told before anything begins
    prefix = f"demo-{secrets.token_hex(3)}-"
    ids = delivery_ids(range(count), prefix)
    file, log = folder / "deliveries.jsonl", folder / "received.jsonl"
    async with receiver(log) as port:
        write_deliveries(file, range(count), port, prefix)
        out.print(f"{count} deliveries to a receiver that fails, hangs and refuses on purpose")
        sender = await _start_sender(file, database)
        killed_at = await _kill_after(sender, log, int(count * _KILL_AT))
        if killed_at is None:
            _check_end(sender)
            out.print("[yellow]the sender was through before it could be killed[/]")
        else:
            out.print(f"SIGKILL after {killed_at} confirmed; the same command again:")
        sender = await _start_sender(file, database)
        await sender.wait()
        _check_end(sender)
    books = await compare(ids, log, database, prefix)
    for name, ids_ in (("lost", books.lost), ("inconsistent", books.inconsistent)):
        if ids_:
            out.print(f"[red]{name}:[/] {' '.join(ids_[:20])}", highlight=False)
    out.print(
        f"{books.delivered} delivered, {books.failed} failed for good, {books.duplicated} duplicated,"
        f" {len(books.lost)} lost, {len(books.inconsistent)} inconsistent"
        f" ({time.monotonic() - began:.1f} s)",
        highlight=False,
    )
    if url is not None:
        out.print(f"the database keeps these deliveries; their ids begin with {prefix}", highlight=False)
    return 0 if books.balanced else 1


async def _start_sender(file: Path, database: str) -> Process:
    # By the environment: an argument with a password in it would be seen by every user of the machine.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hsm.cli", "deliver", str(file)), env=os.environ | {URL_VARIABLE: database}
    )


def _check_end(sender: Process) -> None:
    """Return if a sender has ended as it should."""
    if sender.returncode not in {0, 1}:
        raise CommandError(f"a run of the sender ended with status {sender.returncode}")


@asynccontextmanager
async def receiver(log: Path) -> AsyncGenerator[int, None]:
    """A flaky receiver in a process of its own, which writes to `log`; its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hsm.cli._receiver", str(log), stdin=PIPE, stdout=PIPE
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise CommandError("the receiver did not start")
        yield int(line)
    finally:
        # Whoever waits for its end leaves no process behind, whatever has happened.
        if process.returncode is None:
            process.kill()
        await process.wait()


def delivery_ids(numbers: Iterable[int], prefix: str = "delivery-") -> list[str]:
    """The ids of the deliveries with these numbers."""
    return [f"{prefix}{number:06d}" for number in numbers]


def write_deliveries(file: Path, numbers: Sequence[int], port: int, prefix: str = "delivery-") -> None:
    """Add deliveries to a receiver to a file."""
    with file.open("a", encoding="utf-8") as lines:
        for number, id_ in zip(numbers, delivery_ids(numbers, prefix), strict=True):
            delivery = {
                "id": id_,
                "url": f"http://127.0.0.1:{port}/{id_}",
                "body": {"number": number},
                "timeout": _TIMEOUT_SECONDS,
            }
            if behaviour_of(id_) is Behaviour.NEVER:
                delivery["max_attempts"] = _HOPELESS_ATTEMPTS
            lines.write(json.dumps(delivery) + "\n")


async def _kill_after(process: Process, log: Path, confirmed: int) -> int | None:
    """Kill a sender as soon as the receiver has confirmed so many; how many it was, or None if too late."""
    seen = 0
    with log.open("rb") as lines:
        while process.returncode is None:
            seen += lines.read(_LARGEST_BATCH).count(b'"status": 200')
            if seen >= confirmed:
                process.kill()
                await process.wait()
                return seen
            await asyncio.sleep(_POLL_SECONDS)
    return None


async def compare(ids: list[str], log: Path, database: str, prefix: str = "") -> Books:
    """Compare what the receiver has answered with what the database says of ids that begin with `prefix`."""
    confirmed: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for received in read_log(log):
        confirmed[received.id] += received.status == 200
        refused[received.id] += received.status == 410
    states: dict[str, str] = {}
    async with open_reader(database) as engine:
        async for info in engine.list(namespace=NAMESPACE):
            if info.key.id.startswith(prefix):
                states[info.key.id] = info.state
    lost = [id_ for id_ in ids if id_ not in states or (behaviour_of(id_).confirms and not confirmed[id_])]
    expected = {id_: State.SUCCEEDED.name if behaviour_of(id_).confirms else State.FAILED.name for id_ in ids}
    wrong = [id_ for id_ in {*ids, *states} if states.get(id_) != expected.get(id_)]
    counts = Counter(states.values())
    return Books(
        delivered=counts[State.SUCCEEDED.name],
        failed=counts[State.FAILED.name],
        duplicated=sum(1 for times in confirmed.values() if times > 1),
        lost=tuple(lost),
        inconsistent=tuple(sorted(wrong)),
    )
