"""What the benchmarks share: rounds in alternating order, ratios beside their targets, tables."""

from __future__ import annotations

import enum
import gc
import importlib
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, Final, TypeAlias

import attrs

__all__ = [
    "Line",
    "Measure",
    "Size",
    "Table",
    "Target",
    "alternate",
    "at_least",
    "at_most",
    "best_ratio",
    "isolated",
    "isolated_at",
    "load_peer",
    "median_ratio",
    "render",
    "seconds_per_call",
]

_YOUNG_OBJECTS: Final = 20_000

Measure: TypeAlias = Callable[[], float]
"""One measurement of one case: seconds an operation, or operations a second."""


class Size(enum.Enum):
    """How much is measured: for a figure to keep, for a glance, or only to see that it runs."""

    FULL = "full"
    QUICK = "quick"
    TINY = "tiny"


@attrs.frozen
class Target:
    """The bound that a ratio should keep."""

    bound: float
    upper: bool

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.upper else ratio >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.upper else '>='} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(bound, upper=False)


def at_most(bound: float) -> Target:
    return Target(bound, upper=True)


@attrs.frozen
class Line:
    """One row of a table.

    Attributes:
        name: what was measured.
        figure: as it came out, with its unit.
        ratio: to what the table's heading says.
        target: of the ratio, if it has one.
    """

    name: str
    figure: str
    ratio: float | None = None
    target: Target | None = None


@attrs.frozen
class Table:
    """One comparison.

    Attributes:
        title: what is compared.
        ratio_of: what the ratios are, the heading of their column.
        lines: the rows.
        notes: what could not be measured, for example.
    """

    title: str
    ratio_of: str
    lines: Sequence[Line]
    notes: Sequence[str] = ()


def alternate(cases: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Measure every case once a round, the other way round in every other round; the figures by case.

    What disturbs the machine for longer than a round thus disturbs all cases alike. What is alive before a
    case begins is hidden from the cycle collector, so that no case pays for the objects of another.
    """
    figures: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    try:
        for _ in range(rounds):
            for name in names:
                gc.collect()
                gc.freeze()
                figures[name].append(cases[name]())
            names.reverse()
    finally:
        gc.unfreeze()
    return figures


def isolated(function: Callable[[], float]) -> Measure:
    """A measure that runs in a fresh interpreter: no case pays for the heap and the threads of another.

    The function must be one that can be pickled. All cases run with the same settings of the cycle collector, which are
    those of a service under load: what is imported is frozen, and the youngest generation is larger.
    """

    def measure() -> float:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=_settle) as pool:
            return pool.submit(function).result()

    return measure


def isolated_at(place: Callable[[], str], function: Callable[[str], float]) -> Measure:
    """The same for a function of a URL; the place is made anew for each measurement, in this interpreter."""

    def measure() -> float:
        return isolated(partial(function, place()))()

    return measure


def _settle() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def seconds_per_call(function: Callable[[], object], calls: int = 1) -> float:
    """The mean of `calls` calls, with the cycle collector off, as `timeit` does it."""
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()


def best_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Of short measurements: the quickest round of each case is the least disturbed one."""
    return min(numerators) / min(denominators)


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Of long measurements: the median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def load_peer(module: str, package: str, notes: list[str]) -> Any | None:
    """The module that drives a peer; None, and a note, if the peer is not installed."""
    if importlib.util.find_spec(package) is None:
        note = f"{package} is not installed: left out (it is in the dependency group `benchmark`)"
        if note not in notes:
            notes.append(note)
        return None
    return importlib.import_module(f"tests.benchmarks.peers.{module}")


def render(table: Table) -> str:
    """The table as text; it is Markdown, too."""
    notes = ["\n" + note for note in table.notes]
    if not table.lines:
        return "\n".join([f"### {table.title}", *notes, ""])
    rows = [("", "measured", table.ratio_of, "target", ""), *map(_cells, table.lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([f"### {table.title}", "", *lines, *notes, ""])


def _cells(line: Line) -> tuple[str, str, str, str, str]:
    ratio = "" if line.ratio is None else f"{line.ratio:.3g}x"
    if line.ratio is None or line.target is None:
        return line.name, line.figure, ratio, "", ""
    return line.name, line.figure, ratio, str(line.target), "pass" if line.target.met(line.ratio) else "MISS"
