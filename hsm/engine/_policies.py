"""Policies: what the options say of one queue or one failure; a function among them may fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import attrs

from hsm.engine._logs import engine_logger
from hsm.engine._rows import QueueKey
from hsm.engine.breaker import Breaker
from hsm.engine.options import Backoff, EngineOptions
from hsm.engine.rates import Rate
from hsm.task import Task

__all__ = ["Policies"]

_log: Final = engine_logger()
_AnswerT = TypeVar("_AnswerT")
_Function = Callable[[str, str, str], _AnswerT | None]


class Policies:
    """Bounds of queues and pauses of tasks.

    Attributes:
        live: whether what holds for a queue may change.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        fields = attrs.fields(EngineOptions)
        self._concurrency_of = _unless_default(options.concurrency_of, fields.concurrency_of)
        self._rate_of = _unless_default(options.rate_of, fields.rate_of)
        self._breaker_of = _unless_default(options.breaker_of, fields.breaker_of)
        self.live = not (self._concurrency_of is self._rate_of is self._breaker_of is None)

    def concurrency(self, key: QueueKey) -> int:
        """How many tasks of a queue may run at once."""
        return _answer(self._concurrency_of, key) or self._options.concurrency

    def rate(self, key: QueueKey) -> Rate | None:
        """How often tasks of a queue are started."""
        return _answer(self._rate_of, key) or self._options.rate

    def breaker(self, key: QueueKey) -> Breaker | None:
        """The circuit breaker of a queue; only a destination has one."""
        if key[2] is None:
            return None
        return _answer(self._breaker_of, key) or self._options.breaker

    def backoff(self, task: Task | None, error: BaseException) -> Backoff:
        """The pauses of a task after an error."""
        if task is not None and isinstance(error, Exception):
            try:
                return self._options.backoff_of(task, error) or self._options.backoff
            except Exception:  # noqa: BLE001 - it is logged, with its traceback
                _log.exception("`backoff_of` has failed for %s", task.type.name)
        return self._options.backoff


def _unless_default(
    function: _Function[_AnswerT], field: attrs.Attribute[_Function[_AnswerT]]
) -> _Function[_AnswerT] | None:
    return None if function is field.default else function


def _answer(function: _Function[_AnswerT] | None, key: QueueKey) -> _AnswerT | None:
    if function is None:
        return None
    namespace, group, destination = key
    try:
        return function(namespace, group, destination or "")
    except Exception:  # noqa: BLE001 - no commit must fail for it; it is logged, with its traceback
        _log.exception("the settings of queue %s cannot be told", key)
        return None
