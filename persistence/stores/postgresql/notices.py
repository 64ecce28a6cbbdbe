"""What writers tell those who watch: which keys of which partition, in payloads that are short enough."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Notice", "payloads", "read_payload"]

# PostgreSQL takes payloads of less than 8 000 bytes.
_MAX_BYTES: Final = 7900
_MAX_PAYLOADS: Final = 8


class Notice(NamedTuple):
    """Keys of a partition that have changed.

    Attributes:
        partition: the number of the partition's lock, as a name may be too long.
        keys: the keys; None is any of them.
    """

    partition: int
    keys: Sequence[str] | None


def payloads(notice: Notice) -> Sequence[str]:
    """The payloads of a notice; if its keys would take too many, one that says "any key"."""
    anything = [json.dumps([notice.partition])]
    if notice.keys is None:
        return anything
    chunks: list[list[str]] = []
    left = 0
    for key in notice.keys:
        text = json.dumps(key, ensure_ascii=False)
        size = len(text.encode()) + 1
        if size > left:
            if len(chunks) == _MAX_PAYLOADS:
                return anything
            left = _MAX_BYTES - len(anything[0])
            if size > left:
                return anything
            chunks.append([])
        chunks[-1].append(text)
        left -= size
    return [f"[{notice.partition},{','.join(chunk)}]" for chunk in chunks]


def read_payload(payload: str) -> Notice:
    """The notice that a payload stands for.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        partition, *keys = json.loads(payload)
        number = int(partition)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{payload[:100]!r} is no notice: {error}") from error
    return Notice(number, [str(key) for key in keys] if keys else None)
