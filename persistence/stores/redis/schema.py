"""What a server must be for us, what it is trusted with, and our mark on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
from redis.exceptions import RedisError

from persistence.errors import StoreCorruptError, StoreUnavailableError
from persistence.migrations import Migration, SchemaVersion, missing_migrations
from persistence.stores.redis.failures import translate
from persistence.stores.redis.layout import Layout, row_head
from persistence.stores.redis.links import Command, Link, LinkLostError, Reply
from persistence.stores.redis.scripts import CLAIM, COMMIT, DELETE, PAGE, TIDY

__all__ = ["MIGRATIONS", "ServerFacts", "claim", "inspect", "refuse_eviction", "try_out"]

APPLICATION: Final = b"hsm-toolkit"
MIGRATIONS: Final = (Migration(version=1, statements=(), oldest=1),)
"""The versions of the layout; the first one needs nothing but the mark."""

_OLDEST_SERVER: Final = (6, 2)
_FAILOVER: Final = "a failover to a replica can lose the last acknowledged writes"


@attrs.frozen
class ServerFacts:
    """What a server says of itself.

    Attributes:
        version: of Redis, or the one that Valkey stands for.
        name: and version, for people.
        cluster: it is a node of a cluster.
        durability: what a crash can lose, and how much of it: 0 is the least.
    """

    version: tuple[int, ...]
    name: str
    cluster: bool
    durability: tuple[int, str]


async def inspect(link: Link, where: str, *, allow_eviction: bool) -> ServerFacts:
    """Look at a server's settings.

    Raises:
        StoreUnavailableError: one of them makes it unsafe or useless for us.
    """
    try:
        info, appendfsync, save = await link.exchange(
            [(b"INFO",), (b"CONFIG", b"GET", b"appendfsync"), (b"CONFIG", b"GET", b"save")]
        )
    except LinkLostError as lost:
        raise translate(lost, where) from lost
    if isinstance(info, RedisError):
        raise translate(info, where) from info
    fields = _fields(info)
    named = fields.get("redis_version", "0")
    version = tuple(int(part) for part in named.split(".") if part.isdecimal())
    if version < _OLDEST_SERVER:
        raise StoreUnavailableError(f"Redis at {where} is version {named}; at least 6.2 is needed")
    if fields.get("role") == "slave":
        raise StoreUnavailableError(f"Redis at {where} is a read-only replica; name its master")
    if not allow_eviction:
        refuse_eviction(info, where)
    return ServerFacts(
        version=version,
        name=f"Valkey {valkey}" if (valkey := fields.get("valkey_version")) else f"Redis {named}",
        cluster=fields.get("cluster_enabled") == "1",
        durability=_durability(fields.get("aof_enabled") == "1", _setting(appendfsync), _setting(save)),
    )


def refuse_eviction(info: Reply, where: str) -> None:
    """Return if a server, by its answer to INFO, keeps its rows when memory runs short.

    Raises:
        StoreUnavailableError: it throws rows away.
    """
    policy = _fields(info).get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StoreUnavailableError(
            f"Redis at {where} has maxmemory-policy {policy}, so that it throws rows away when memory runs"
            " short; set it to noeviction, or accept the loss with the option allow_eviction=true"
        )


def _durability(append_only: bool, appendfsync: str | None, save: str | None) -> tuple[int, str]:
    if not append_only:
        if save == "":
            return 4, "neither append-only file nor snapshots: a restart of the server loses everything"
        return 3, f"no append-only file: a crash of the server loses all since its last snapshot; {_FAILOVER}"
    if appendfsync == "always":
        return 0, f"appendfsync always: a crash of the server loses nothing; {_FAILOVER}"
    if appendfsync == "everysec":
        return 1, f"appendfsync everysec: a crash of the machine can lose the last second; {_FAILOVER}"
    if appendfsync is None:
        return 2, (
            "append-only file, but CONFIG is forbidden and appendfsync unknown: a crash of the machine can"
            f" lose the last seconds; {_FAILOVER}"
        )
    return 2, f"appendfsync {appendfsync}: a crash of the machine can lose the last half minute; {_FAILOVER}"


async def claim(link: Link, where: str, layout: Layout, *, create: bool) -> None:
    """See to it that the place is ours.

    Raises:
        StoreCorruptError: it is somebody else's, or too new; it was left as it was.
        StoreUnavailableError: it is nobody's or older, and must not be made or changed.
    """
    found = await _claim(link, where, layout, create=False)
    place = f"Redis at {where}, where its mark is the key {layout.meta.decode()!r}"
    if missing_migrations(MIGRATIONS, found, place, create=create):
        await _claim(link, where, layout, create=True)


async def _claim(link: Link, where: str, layout: Layout, *, create: bool) -> SchemaVersion:
    newest = MIGRATIONS[-1]
    mark = [APPLICATION, b"%d" % newest.version, b"%d" % newest.oldest, b"create" if create else b"look"]
    command: Command = CLAIM.call([layout.meta], mark)
    try:
        (reply,) = await link.call([command])
    except LinkLostError as lost:
        raise translate(lost, where) from lost
    if isinstance(reply, RedisError):
        raise translate(reply, where) from reply
    if isinstance(reply, bytes):
        name = layout.meta.decode()
        raise StoreCorruptError(f"key {name!r} in Redis at {where} is {reply.decode()}, not our mark")
    assert isinstance(reply, Sequence)  # see claim.lua
    version, oldest = reply
    assert isinstance(version, int)
    assert isinstance(oldest, int)
    return SchemaVersion(version, oldest)


async def try_out(link: Link, where: str, layout: Layout, name: str, publish: bytes) -> bool:
    """Do once what the store is going to do; whether changes can be told by the command `publish`.

    A script that lacks a permission ends in its middle, so that it must not come to that later.

    Raises:
        StoreUnavailableError: something is forbidden.
    """
    index, log, row, channel = layout.trial(name)
    keys = [index, log, row, row + b"+"]
    plain, expiring = row_head(name, None, expires=False), row_head(name, None, expires=True)
    put = [b"000000020003s0004e", plain, expiring, b"1000", b""]
    drop = [b"000000020003d0004d"]
    arguments = [name.encode(), b"", channel]
    commands: list[Command] = [
        COMMIT.call(keys, [*arguments, *put]),
        PAGE.call([index], [b"-", b"+", b"", b"1", b"1", b"values"]),
        (b"MGET", row),
        COMMIT.call(keys, [*arguments, *drop]),
        DELETE.call([index, row], [b"", channel]),
        TIDY.call([index, row]),
        (b"DEL", log),
        (publish or b"PUBLISH", channel, b""),
    ]
    try:
        *replies, told = await link.call(commands)
    except LinkLostError as lost:
        raise translate(lost, where) from lost
    for reply in replies:
        if isinstance(reply, RedisError):
            raise translate(reply, where) from reply
    return bool(publish) and not isinstance(told, RedisError)


def _fields(info: Reply) -> Mapping[str, str]:
    assert isinstance(info, bytes)  # so INFO answers
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _setting(reply: Reply) -> str | None:
    """The value of a setting; None if the server does not tell."""
    if isinstance(reply, Sequence) and not isinstance(reply, bytes) and len(reply) == 2:
        value = reply[1]
        return value.decode() if isinstance(value, bytes) else None
    return None
