"""What all operations have in common: attempts, sets read by pages, values that are messages."""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
from google.protobuf.message import DecodeError, Message

from hsm.fsm._turns import Turns
from hsm.fsm.configuration import check_id
from hsm.fsm.errors import (
    FSMStoreError,
    GenericStoreError,
    InvalidDataError,
    InvalidIdentifierError,
    StoreTimeoutError,
)
from hsm.fsm.redis._replies import as_list, as_texts
from hsm.fsm.redis.options import RedisStoreOptions
from persistence.errors import PersistenceError, StoreUnavailableError

if TYPE_CHECKING:
    from hsm.fsm.redis._opening import Opened
    from persistence.stores.redis.settings import Address

__all__ = ["Base", "Settings", "parsed", "valid_id"]

R = TypeVar("R")
MessageT = TypeVar("MessageT", bound=Message)

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 0.5
_PAGE_MEMBERS: Final = b"1000"


@attrs.frozen(kw_only=True)
class Settings:
    """What a store is made with; see `RedisStore`."""

    address: str
    is_cluster: bool
    db: int
    timeout: timedelta
    max_retries: int
    namespace: str
    options: RedisStoreOptions


class Base:
    """A store on a server or a cluster."""

    def __init__(self, settings: Settings) -> None:
        if settings.max_retries < 1:
            raise InvalidDataError(f"max_retries={settings.max_retries} allows no attempt; 1 is the least")
        self._address = settings.address
        self._max_retries = settings.max_retries
        self._namespace = settings.namespace
        self._options = settings.options
        self._logger = _new_logger(logging.NOTSET)
        self._opened = _open(settings)
        self._layout = self._opened.layout
        self._writer = self._opened.writer
        self._turns = Turns()
        self.set_timeout(settings.timeout)

    def set_log_level(self, level: int) -> None:
        """Set the level (of `logging`) of what this store logs."""
        # A logger that is registered nowhere does not notice that its level has changed.
        self._logger = _new_logger(level)

    def set_timeout(self, duration: timedelta) -> None:
        """How long one attempt at one exchange with the server may take; zero: as long as it likes.

        Raises:
            InvalidDataError: it is negative.
        """
        if duration < timedelta():
            raise InvalidDataError(f"a time-out of {duration} is negative")
        self._timeout = duration
        self._opened.connections.set_timeout(duration)

    async def _attempt(self, what: str, work: Callable[[int], Awaitable[R]]) -> R:
        """Do something that may be done twice, until it succeeds or the attempts are used up.

        Args:
            what: the key, or the operation, as errors name it.
            work: called with the number of the attempt, from 0.

        Raises:
            StoreTimeoutError: there was no answer in time, in the last attempt either.
            GenericStoreError: the server could not be reached in the last attempt either; or its answer makes
                further attempts useless.
        """
        number = 0
        while True:
            try:
                return await work(number)
            except (TimeoutError, StoreUnavailableError) as error:
                failure: Exception = error
            except PersistenceError as error:
                raise GenericStoreError(f"store error: {what}: {error}") from error
            number += 1
            if number >= self._max_retries:
                raise self._exhausted(what, number, failure) from failure
            self._logger.warning("%s: attempt %d failed: %s", what, number, _described(failure))
            await _pause(number)

    def _exhausted(self, what: str, attempts: int, failure: Exception) -> FSMStoreError:
        where = self._opened.connections.where
        text = f"store error: {what}: {attempts} attempts at Redis at {where} failed, the last one with: "
        if isinstance(failure, TimeoutError) or _timed_out(failure):
            return StoreTimeoutError(f"{text}no answer within {self._timeout.total_seconds():g} s")
        return GenericStoreError(text + _described(failure))

    async def _ask(self, key: bytes, *commands: Sequence[bytes]) -> Sequence[object]:
        """The answers to commands on a key, which may be sent twice."""
        from persistence.stores.redis.dispatch import Request  # noqa: PLC0415  needs the client library

        slot = self._layout.slot(key)
        requests = [Request(slot, command) for command in commands]

        async def work(_: int) -> Sequence[object]:
            return await self._opened.connections.ask(requests)

        return await self._attempt(key.decode(), work)

    async def _members(self, key: bytes) -> AsyncIterator[list[str]]:
        """The members of a set by pages; a member may come twice."""
        cursor: object = b"0"
        while True:
            assert isinstance(cursor, bytes)  # so SSCAN promises
            (reply,) = await self._ask(key, (b"SSCAN", key, cursor, b"COUNT", _PAGE_MEMBERS))
            cursor, page = as_list(reply)
            if texts := as_texts(page, f"members of {key.decode()}"):
                yield texts
            if cursor == b"0":
                return

    async def _keys(self, pattern: bytes) -> AsyncIterator[bytes]:
        """The keys that match a pattern, on all nodes; a key may come twice."""
        connections = self._opened.connections

        async def nodes(_: int) -> list[Address]:
            return [address for address, _ in await connections.ask_all((b"PING",))]

        for address in await self._attempt("SCAN", nodes):
            cursor: object = b"0"
            while True:
                assert isinstance(cursor, bytes)  # so SCAN promises
                command = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _PAGE_MEMBERS)

                async def page(
                    _: int, address: Address = address, command: Sequence[bytes] = command
                ) -> object:
                    return await connections.ask_node(address, command)

                cursor, found = as_list(await self._attempt("SCAN", page))
                for key in as_list(found):
                    assert isinstance(key, bytes)  # as above
                    yield key
                if cursor == b"0":
                    break


def valid_id(id: str, what: str) -> None:  # noqa: A002  the field's word
    """Refuse an id that can be told apart from no other, or cannot be stored.

    Raises:
        InvalidDataError: says why.
    """
    try:
        check_id(id, what)
    except InvalidIdentifierError as error:
        raise InvalidDataError(str(error)) from error


def parsed(kind: type[MessageT], value: object, key: bytes) -> MessageT:
    """The message that a key holds.

    Raises:
        InvalidDataError: it holds something else.
    """
    assert isinstance(value, bytes)  # what was asked for is a text
    try:
        return kind.FromString(value)
    except DecodeError as error:
        raise InvalidDataError(f"key {key.decode()} holds no {kind.DESCRIPTOR.name}: {error}") from error


def _open(settings: Settings) -> Opened:
    try:
        importlib.import_module("redis")
    except ImportError as error:
        raise GenericStoreError(
            "RedisStore needs the client library redis: pip install 'hsm-toolkit[redis]'"
        ) from error
    from hsm.fsm.redis._opening import open_connections  # noqa: PLC0415  it imports the client library

    return open_connections(settings)


async def _pause(number: int) -> None:
    longest = min(_FIRST_PAUSE_SECONDS * 2**number, _LONGEST_PAUSE_SECONDS)
    # Of full width, so that those who failed together do not come back together.
    await asyncio.sleep(random.uniform(0, longest))


def _new_logger(level: int) -> logging.Logger:
    """A logger of one store alone, so that its level is nobody else's."""
    logger = logging.Logger("hsm.fsm.redis", level)  # noqa: LOG001  as said above
    logger.parent = logging.getLogger("hsm.fsm.redis")
    return logger


def _described(failure: BaseException) -> str:
    return str(failure) or ("no answer in time" if isinstance(failure, TimeoutError) else repr(failure))


def _timed_out(failure: BaseException) -> bool:
    cause = failure.__cause__
    return isinstance(cause, TimeoutError) or getattr(cause, "timed_out", False)
