"""Rows of the engine: their keys. A shard's partition holds everything about its executions.

Keys are segments joined by `/`; a segment has its own `%` and `/` escaped. The prefixes:

| key | row |
|---|---|
| `c/<namespace>/<id>` | current run of an id |
| `e/<namespace>/<id>/<run>` | an execution: its version, what listings show, and the root machine |
| `n/<namespace>/<id>/<run>/<type:id>/...` | one machine below the root |
| `t/<due>/<task>` | timer, or any task that waits for its next try; `due` in nanoseconds with 20 digits |
| `o/<namespace>/<group>/<destination>/<task>` | outbound task |
| `i/<namespace>/<group>/<task>` | immediate task, or a timer that is due |
| `d/<task>` | dead letter |
| `a/<namespace>/<attribute>/<value>/<id>/<run>` | search attribute of an execution |
| `h/<namespace>/<id>/<run>/<count>` | what one commit has changed in an execution that keeps its history |
| `p/<namespace>/<id>/<run>` | news for the process that runs the shard: the execution is not what it was |
| `q/<namespace>/<id>/<run>/<task>` | task that has come up while its execution was paused |
| `r/<peer>/<namespace>/<id>/<run>` | mark: a cluster has to be told of this execution |
| `u/<namespace>/<id>/<run>/<request>` | result of a call, kept for whoever makes it again |
| `x/<due>/<namespace>/<id>/<run>` | when a closed execution is deleted |
| `z/<namespace>/<id>/<run>/<ordinal>` | tombstone: rows that are still to be deleted, or put back |

The partition `exec` holds what concerns all shards:

| key | row |
|---|---|
| `settings` | what is fixed when the database is first used |
| `m/<member>` | a process that runs queues |
| `s/<shard>` | the member that runs the queues of a shard |
| `f/<source>/<namespace>` | how far the first pass of replication has come |
| `b/<shard>` | written to wake up the member that runs a shard |
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

from persistence.errors import InvalidRequestError

__all__ = [
    "AFTER_SLASH",
    "SETTINGS_KEY",
    "SETTINGS_PARTITION",
    "answer_key",
    "answer_prefix",
    "bell_key",
    "current_run_key",
    "dead_letter_key",
    "escape",
    "execution_key",
    "execution_keys",
    "expiry_key",
    "group_prefix",
    "history_key",
    "history_prefix",
    "member_key",
    "node_prefix",
    "notice_key",
    "parked_key",
    "parked_prefix",
    "parse_execution_key",
    "parse_expiry_key",
    "prefix_end",
    "replication_cursor_key",
    "replication_mark_key",
    "replication_mark_prefix",
    "segment",
    "shard_of",
    "shard_of_bell",
    "shard_of_owner",
    "shard_of_partition",
    "shard_owner_key",
    "shard_partition",
    "timer_key",
    "tombstone_key",
    "unescape",
]

SETTINGS_PARTITION: Final = "exec"
SETTINGS_KEY: Final = "settings"
AFTER_SLASH: Final = "0"
"""The character after `/`: replaces a closing slash to make the end of a prefix range."""


def escape(segment: str) -> str:
    """A segment that may hold any text, without `/`."""
    if "%" in segment or "/" in segment:
        return segment.replace("%", "%25").replace("/", "%2F")
    return segment


def unescape(segment: str) -> str:
    """What `escape` was given."""
    return segment.replace("%2F", "/").replace("%25", "%")


def shard_of(namespace: str, id_: str, count: int) -> int:
    """The shard of an execution id; the same for all its runs, for ever.

    Raises:
        InvalidRequestError: namespace or id holds a lone surrogate, which no store can keep.
    """
    try:
        name = f"{namespace}\0{id_}".encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{namespace!r} / {id_!r} is no name for an execution: {error}") from error
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) % count


def shard_partition(shard: int) -> str:
    """The partition of a shard."""
    return f"exec/{shard}"


def shard_of_partition(partition: str) -> int:
    """The shard of a partition that `shard_partition` has named."""
    return int(partition.removeprefix("exec/"))


def member_key(member: str) -> str:
    """Key of a process that runs queues."""
    return f"m/{member}"


def bell_key(shard: int) -> str:
    """Key of the row that is written to wake up whoever runs a shard."""
    return f"b/{shard:06d}"


def shard_of_bell(key: str) -> int | None:
    """The shard of a key that `bell_key` has made; None for another key."""
    return _numbered("b/", key)


def shard_owner_key(shard: int) -> str:
    """Key of the row that names who runs the queues of a shard."""
    return f"s/{shard:06d}"


def shard_of_owner(key: str) -> int | None:
    """The shard of a key that `shard_owner_key` has made; None for another key."""
    return _numbered("s/", key)


def _numbered(prefix: str, key: str) -> int | None:
    digits = key.removeprefix(prefix)
    return int(digits) if digits != key and digits.isascii() and digits.isdecimal() else None


def current_run_key(namespace: str, id_: str) -> str:
    """Key of the row that names the current run."""
    return f"c/{escape(namespace)}/{escape(id_)}"


def execution_key(namespace: str, id_: str, run_id: str) -> str:
    """Key of the row of an execution."""
    return execution_keys(namespace, id_, run_id)[0]


def execution_keys(namespace: str, id_: str, run_id: str) -> tuple[str, str]:
    """The key of an execution's row, and the prefix of the rows of its machines."""
    name = f"{escape(namespace)}/{escape(id_)}/{escape(run_id)}"
    return f"e/{name}", f"n/{name}/"


def parse_execution_key(key: str) -> tuple[str, str, str]:
    """Namespace, id and run id, as given to `execution_key` or `notice_key`."""
    _, namespace, id_, run_id = key.split("/")
    return unescape(namespace), unescape(id_), unescape(run_id)


def node_prefix(namespace: str, id_: str, run_id: str) -> str:
    """Prefix of the rows of the machines below the root."""
    return execution_keys(namespace, id_, run_id)[1]


def segment(type_id: int, id_: str) -> str:
    """One machine in the path of its row."""
    return f"{type_id}:{escape(id_)}"


def prefix_end(prefix: str) -> str:
    """The end of the range of keys that start with a prefix that closes with `/`."""
    return prefix[:-1] + AFTER_SLASH


def timer_key(due_nanos: int, task_id: str) -> str:
    """Key of a timer row."""
    return f"t/{max(due_nanos, 0):020d}/{task_id}"


@functools.lru_cache(maxsize=1024)
def group_prefix(namespace: str, group: str, destination: str | None) -> str:
    """Prefix of the rows of a queue; without a destination it is one of immediate tasks."""
    if destination is None:
        return f"i/{escape(namespace)}/{escape(group)}/"
    return f"o/{escape(namespace)}/{escape(group)}/{escape(destination)}/"


def dead_letter_key(task_id: str) -> str:
    """Key of a dead letter."""
    return f"d/{task_id}"


def tombstone_key(namespace: str, id_: str, run_id: str, ordinal: int) -> str:
    """Key of a tombstone."""
    return f"z/{escape(namespace)}/{escape(id_)}/{escape(run_id)}/{ordinal:020d}"


def parked_prefix(namespace: str, id_: str, run_id: str) -> str:
    """Prefix of the tasks of an execution that have come up while it was paused."""
    return f"q/{escape(namespace)}/{escape(id_)}/{escape(run_id)}/"


def parked_key(namespace: str, id_: str, run_id: str, task_id: str) -> str:
    """Key of a task that has come up while its execution was paused."""
    return parked_prefix(namespace, id_, run_id) + task_id


def history_prefix(namespace: str, id_: str, run_id: str) -> str:
    """Prefix of the history of an execution."""
    return f"h/{escape(namespace)}/{escape(id_)}/{escape(run_id)}/"


def history_key(namespace: str, id_: str, run_id: str, count: int) -> str:
    """Key of what the commit with this transition count has changed."""
    return f"{history_prefix(namespace, id_, run_id)}{count:020d}"


def answer_prefix(namespace: str, id_: str, run_id: str) -> str:
    """Prefix of the results of calls that an execution keeps."""
    return f"u/{escape(namespace)}/{escape(id_)}/{escape(run_id)}/"


def answer_key(namespace: str, id_: str, run_id: str, request_id: str) -> str:
    """Key of the result of a call."""
    return answer_prefix(namespace, id_, run_id) + escape(request_id)


def expiry_key(due_nanos: int, namespace: str, id_: str, run_id: str) -> str:
    """Key of the row that tells when a closed execution is deleted."""
    return f"x/{max(due_nanos, 0):020d}/{escape(namespace)}/{escape(id_)}/{escape(run_id)}"


def parse_expiry_key(key: str) -> tuple[str, str, str]:
    """Namespace, id and run id, as given to `expiry_key`."""
    _, _, namespace, id_, run_id = key.split("/")
    return unescape(namespace), unescape(id_), unescape(run_id)


def notice_key(namespace: str, id_: str, run_id: str) -> str:
    """Key of the row that tells whoever runs the shard to look at an execution again."""
    return "p" + execution_key(namespace, id_, run_id)[1:]


def replication_mark_prefix(peer: int, namespace: str) -> str:
    """Prefix of the marks of a namespace for a cluster."""
    return f"r/{peer}/{escape(namespace)}/"


def replication_mark_key(peer: int, namespace: str, id_: str, run_id: str) -> str:
    """Key of the mark that says that a cluster has to be told of an execution."""
    return f"{replication_mark_prefix(peer, namespace)}{escape(id_)}/{escape(run_id)}"


def replication_cursor_key(source: int, namespace: str) -> str:
    """Key of the row that says how far a cluster has been told of the executions that another one has."""
    return f"f/{source}/{escape(namespace)}"
