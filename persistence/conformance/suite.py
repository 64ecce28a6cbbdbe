"""All cases together, and a way to run them without a test framework."""

from __future__ import annotations

import asyncio
import unittest
from typing import Final

import attrs

from persistence.conformance import (
    _basics,
    _bulk,
    _concurrency,
    _decisions,
    _etags,
    _expiry,
    _limits,
    _listing,
    _options,
    _scans,
    _transactions,
    _watches,
)
from persistence.conformance.case import Case, OpenStore, Wait

__all__ = ["CASES", "Report", "check_store"]

CASES: Final[tuple[Case, ...]] = tuple(
    case
    for module in (
        _basics,
        _options,
        _etags,
        _decisions,
        _bulk,
        _transactions,
        _concurrency,
        _limits,
        _expiry,
        _scans,
        _listing,
        _watches,
    )
    for case in module.cases.all
)
"""Every case of the suite."""


@attrs.frozen
class Report:
    """What a store has shown.

    Attributes:
        passed: names of the cases that hold.
        skipped: names of the cases about features that the store does not declare.
    """

    passed: tuple[str, ...]
    skipped: tuple[str, ...]


async def check_store(open_store: OpenStore, wait: Wait = asyncio.sleep) -> Report:
    """Run every case, one after the other.

    Raises:
        ExceptionGroup: the failures, each with a note that names the case.
    """
    passed: list[str] = []
    skipped: list[str] = []
    failures: list[Exception] = []
    for case in CASES:
        try:
            await case.check(open_store, wait)
        except unittest.SkipTest:
            skipped.append(case.name)
        except Exception as error:  # noqa: BLE001  the other cases are of interest, too
            error.add_note(f"in case {case.name}")
            failures.append(error)
        else:
            passed.append(case.name)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(CASES)} cases failed", failures)
    return Report(tuple(passed), tuple(skipped))
