"""What each backend has shown in the conformance suite, as a table for the docs.

python -m tests.support.conformance_table [KIND ...]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import unittest
from functools import partial

from persistence import Feature, HasServerVersion, connect
from persistence.backends import backend_of
from persistence.conformance import CASES, Case
from tests.crash._kinds import ALL_KINDS, database_of
from tests.support.servers import MissingServerError


async def check(url: str) -> tuple[str, list[str], list[str], list[Exception]]:
    """The database's version, the cases that passed and those that were skipped, and the failures."""
    passed: list[str] = []
    skipped: list[str] = []
    failures: list[Exception] = []

    async def check_case(case: Case) -> None:
        try:
            await case.check(partial(connect, url))
        except unittest.SkipTest:
            skipped.append(case.name)
        except Exception as error:  # noqa: BLE001  all failures are told
            error.add_note(f"in case {case.name}")
            failures.append(error)
        else:
            passed.append(case.name)

    async with connect(url) as store:
        backend = backend_of(url)
        name = backend.name if backend is not None else "?"
        version = store.server_version if isinstance(store, HasServerVersion) else name
        waiting = [case for case in CASES if Feature.TTL in case.needs]
        for case in CASES:
            if case not in waiting:
                await check_case(case)
        # These wait for the database's clock, so they wait together.
        await asyncio.gather(*(check_case(case) for case in waiting))
    return version, passed, skipped, failures


def missing_features(skipped: list[str], url: str) -> str:
    """Why cases were skipped."""
    backend = backend_of(url)
    assert backend is not None
    reasons = {
        feature.value for case in CASES if case.name in skipped for feature in case.needs - backend.features
    }
    return ", ".join(sorted(reasons))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ("memory", *ALL_KINDS)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(kinds)}")
    chosen: list[str] = parser.parse_args().kinds or list(kinds)
    print("| database | cases passed | skipped | for want of | failed |")
    print("|---|---|---|---|---|")
    good = True
    for kind in chosen:
        try:
            if kind == "memory":
                good &= show("memory://conformance")
            else:
                with database_of(kind) as url:
                    good &= show(url)
        except MissingServerError as error:
            print(f"{kind}: {error}", file=sys.stderr)
    sys.exit(0 if good else 1)


def show(url: str) -> bool:
    """Print a row, and the failures; whether there were none."""
    version, passed, skipped, failures = asyncio.run(check(url))
    lacking = missing_features(skipped, url)
    print(f"| {version} | {len(passed)} | {len(skipped)} | {lacking} | {len(failures)} |", flush=True)
    for error in failures:
        notes = "; ".join(getattr(error, "__notes__", ()))
        print(f"{notes}: {error!r}", file=sys.stderr)
    return not failures


if __name__ == "__main__":
    main()
