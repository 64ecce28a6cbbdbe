"""The whole engine in virtual time, with everything that can go wrong: each seed is a story of its own.

    python tests/crash/engine_simulation.py                        10 000 seeds, in two processes
    python tests/crash/engine_simulation.py --quick                some of them, and some engines that are broken
    python tests/crash/engine_simulation.py --seed 4711            one of them, with everything that happened
    python tests/crash/engine_simulation.py --break version        a broken engine: a seed has to find it
    python tests/crash/engine_simulation.py --break all

In a story several processes with an engine each, and clients, work on the same executions in one store. Calls of
the store fail before they are carried out, or afterwards, or nobody knows; are slow, or come too late; processes
are killed, or stopped for longer than their leases, in the midst of anything; executors fail in every way. When
the faults have ended everything has to come to its end, and the database and the memory of the clients have to
agree: see `tests/simulation/audit.py`. The same seed tells the same story.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.simulation.breaks import BREAKS, broken
from tests.simulation.story import simulate

SEEDS: Final = 10_000
QUICK_SEEDS: Final = 150
QUICK_BREAKS: Final = ("version", "task-row", "outbox", "unknown", "validation", "rollback")
BREAK_SEEDS: Final = 500
SEEDS_OF_A_BATCH: Final = 50


def play(seeds: Sequence[int]) -> tuple[list[tuple[int, str]], Counter[str]]:
    """Some stories: those that went wrong, and what happened in all of them."""
    logging.disable(logging.CRITICAL)
    problems: list[tuple[int, str]] = []
    counts: Counter[str] = Counter()
    for seed in seeds:
        result = simulate(seed)
        counts += result.counts
        if result.problem:
            problems.append((seed, result.problem))
    return problems, counts


def run(seeds: range, jobs: int) -> bool:
    """All of some seeds; whether nothing is wrong."""
    began = time.monotonic()
    counts: Counter[str] = Counter()
    failed = 0
    for problems, more in in_processes(batches(seeds), jobs):
        counts += more
        for seed, problem in problems:
            failed += 1
            print(f"seed {seed}: {problem}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds in {seconds:.0f} s, {len(seeds) / seconds:.0f} a second; {failed} went wrong")
    for name, count in sorted(counts.items()):
        print(f"  {name:42} {count:>10,}")
    return not failed


def batches(seeds: range) -> list[range]:
    starts = range(seeds.start, seeds.stop, SEEDS_OF_A_BATCH)
    return [range(start, min(start + SEEDS_OF_A_BATCH, seeds.stop)) for start in starts]


def in_processes(parts: list[range], jobs: int) -> Iterator[tuple[list[tuple[int, str]], Counter[str]]]:
    if jobs == 1:
        yield from map(play, parts)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(play, parts)


def find(name: str, seeds: range) -> bool:
    """Whether a broken engine is found out."""
    what, _ = BREAKS[name]
    began = time.process_time()
    with broken(name):
        for number, seed in enumerate(seeds):
            problem = simulate(seed).problem
            if problem:
                seconds = time.process_time() - began
                print(f"{name}: {what}: found by seed {seed}, number {number + 1}, in {seconds:.1f} s:")
                print(f"    {problem.strip().splitlines()[-1][:200]}", flush=True)
                return True
    print(f"{name}: {what}: NOT found by {len(seeds)} seeds", flush=True)
    return False


def tell(seed: int, context: AbstractContextManager[Any]) -> bool:
    """One story, from its beginning to its end."""
    with context:
        result = simulate(seed)
    print("\n".join(result.trace))
    print(f"seed {seed}: {result.problem or 'all is well'}; the trace is {result.digest}")
    return not result.problem


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SEEDS} seeds, {len(QUICK_BREAKS)} defects"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, help="this one alone, with its trace")
    parser.add_argument(
        "--break", dest="defect", choices=[*BREAKS, "all"], metavar="DEFECT", help=", ".join([*BREAKS, "all"])
    )
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.seed is not None:
        return not tell(arguments.seed, broken(arguments.defect) if arguments.defect else nullcontext())
    if arguments.defect:
        names = list(BREAKS) if arguments.defect == "all" else [arguments.defect]
        seeds = range(arguments.first, arguments.first + min(arguments.seeds, BREAK_SEEDS))
        found = [find(name, seeds) for name in names]
        return not all(found)
    if arguments.quick:
        found = [find(name, range(BREAK_SEEDS)) for name in QUICK_BREAKS]
        return not (run(range(arguments.first, arguments.first + QUICK_SEEDS), 1) and all(found))
    return not run(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
