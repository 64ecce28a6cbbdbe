"""The public surface: every module says what it exports, and what it exports is there and documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

import hsm
import persistence

GENERATED = ("_pb2", "_pb2_grpc")


def public_modules() -> Iterator[str]:
    for package in (hsm, persistence):
        yield package.__name__
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=refuse):
            parts = info.name.split(".")
            if not any(part.startswith("_") for part in parts) and not info.name.endswith(GENERATED):
                yield info.name


def refuse(name: str) -> None:
    raise ImportError(f"cannot import {name}")


MODULES = sorted(public_modules())


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Constants, then classes, then the rest, each in natural order: as ruff sorts `__all__`."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def exported(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    assert isinstance(names, list), f"{module.__name__} has no __all__"
    return names


def test_module_lists_what_it_exports_in_order(module: ModuleType) -> None:
    names = exported(module)

    assert names == sorted(set(names), key=order)


def test_every_exported_name_is_there(module: ModuleType) -> None:
    assert [name for name in exported(module) if not hasattr(module, name)] == []


def test_no_private_name_is_exported(module: ModuleType) -> None:
    assert [name for name in exported(module) if name.startswith("_") and name != "__version__"] == []


def test_module_exports_every_public_thing_it_defines(module: ModuleType) -> None:
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }

    assert defined - set(exported(module)) == set()


def test_module_and_what_it_exports_are_documented(module: ModuleType) -> None:
    assert module.__doc__, f"{module.__name__} has no docstring"
    undocumented = [
        name
        for name in exported(module)
        if (inspect.isclass(value := getattr(module, name)) or inspect.isroutine(value))
        and not own_docstring(value)
    ]

    assert undocumented == []


def test_public_methods_are_documented(module: ModuleType) -> None:
    undocumented = [
        f"{name}.{method}"
        for name in exported(module)
        if inspect.isclass(value := getattr(module, name)) and value.__module__ == module.__name__
        for method in vars(value)
        if not method.startswith("_")
        and (inspect.isroutine(getattr(value, method)) or isinstance(vars(value)[method], property))
        and not inspect.getdoc(getattr(value, method))
    ]

    assert undocumented == []


def own_docstring(value: object) -> str | None:
    """The docstring of the thing itself: a class inherits none here."""
    return value.__dict__.get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
