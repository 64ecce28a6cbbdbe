"""Statements that go to the server together and are answered together.

psycopg's pipeline sends each statement by itself, and asks in between whether the server has answered; a
transaction of ours then takes twice the time of the event loop.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg import AsyncConnection, abc, generators
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow

__all__ = ["Answer", "Exchange", "Parameters", "Statement"]

Parameters: TypeAlias = tuple[object, ...]
Statement: TypeAlias = tuple[bytes, Parameters]

_PLACEHOLDER: Final = re.compile(rb"%([%b])")
_KEPT_TEXTS: Final = 256


class Answer(NamedTuple):
    """What came of a statement: its rows, and how many rows it has returned or changed."""

    rows: Sequence[tuple[Any, ...]]
    affected: int


class _Message(NamedTuple):
    text: bytes
    values: Sequence[Buffer | None]
    types: tuple[int, ...]


class Exchange:
    """Runs statements on a connection that nobody else uses meanwhile.

    After anything but a refusal by the server the connection is closed: nobody knows what it will be
    answering next.
    """

    def __init__(self, connection: AsyncConnection[TupleRow], *, prepare: bool) -> None:
        """`prepare`: let the server keep what it has made of each statement, for the next time."""
        self._connection = connection
        self._prepare = prepare
        self._names: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self._numbers = itertools.count()

    async def run(self, *statements: Statement) -> list[Answer]:
        """Run statements in order; those after one that is refused are not run.

        Raises:
            psycopg.Error: of the first statement that was refused, or the connection is lost.
        """
        connection = self._connection
        pgconn, encoding = connection.pgconn, connection.info.encoding
        transformer: abc.Transformer = Transformer(connection)
        messages = [_message(transformer, text, parameters) for text, parameters in statements]
        prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        kept: list[int] = []
        sent = itertools.count()
        try:
            pgconn.enter_pipeline_mode()
            for text, values, types in messages:
                formats = [Format.BINARY] * len(values)
                if not self._prepare:
                    pgconn.send_query_params(_numbered(text), values, types, formats, Format.BINARY)
                else:
                    name = self._names.get((text, types)) or prepared.get((text, types))
                    if name is None:
                        name = prepared[text, types] = b"hsm_%d" % next(self._numbers)
                        pgconn.send_prepare(name, _numbered(text), types)
                        next(sent)
                    pgconn.send_query_prepared(name, values, formats, Format.BINARY)
                kept.append(next(sent))
            pgconn.pipeline_sync()
            results = await connection.wait(_results(pgconn, next(sent) + 1, encoding))
            pgconn.exit_pipeline_mode()
        except BaseException:
            pgconn.finish()
            raise
        refused = _refused(results)
        if refused is not None:
            # Whether the server has prepared what it should is not known; that gets another name next time.
            raise error_from_result(refused, encoding)
        self._names |= prepared
        return [_answer(transformer, results[index]) for index in kept]


def _message(transformer: abc.Transformer, text: bytes, parameters: Parameters) -> _Message:
    values = transformer.dump_sequence(parameters, [PyFormat.BINARY] * len(parameters))
    return _Message(text, values, transformer.types or ())


def _results(pgconn: PGconn, count: int, encoding: str) -> PQGen[list[PGresult]]:
    """Send what is queued, and collect one result for each message."""
    yield from generators.send(pgconn)
    results: list[PGresult] = []
    try:
        for _ in range(count):
            results += yield from generators.fetch_many(pgconn)
    except psycopg.Error:
        refused = _refused(results)
        if refused is None:
            raise
        # The server said why before it closed the connection.
        raise error_from_result(refused, encoding) from None
    return results


def _refused(results: Sequence[PGresult]) -> PGresult | None:
    return next((result for result in results if result.status == ExecStatus.FATAL_ERROR), None)


def _answer(transformer: abc.Transformer, result: PGresult) -> Answer:
    if result.status != ExecStatus.TUPLES_OK:
        return Answer((), result.command_tuples or 0)
    transformer.set_pgresult(result)
    return Answer(transformer.load_rows(0, result.ntuples, tuple), result.ntuples)


@functools.lru_cache(_KEPT_TEXTS)
def _numbered(statement: bytes) -> bytes:
    """A statement with the server's placeholders in place of psycopg's."""
    numbers = itertools.count(1)
    return _PLACEHOLDER.sub(lambda found: b"%" if found[1] == b"%" else b"$%d" % next(numbers), statement)
