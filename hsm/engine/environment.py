"""Environments of one's own: what executors are given instead of the bare engine."""

from __future__ import annotations

from typing import TypeVar

from hsm.executor import Environment

__all__ = ["environment_as"]

EnvironmentT = TypeVar("EnvironmentT")


def environment_as(environment: Environment, type_: type[EnvironmentT]) -> EnvironmentT:
    """The environment of an executor as what the engine was given to make: `Engine(..., environment=type_)`.

    Raises:
        TypeError: it is something else: the engine was made without it.
    """
    if not isinstance(environment, type_):
        raise TypeError(f"the environment is a {type(environment).__qualname__}, no {type_.__qualname__}")
    return environment
