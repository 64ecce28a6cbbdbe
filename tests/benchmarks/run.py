"""Run the benchmarks and print their tables: ratios, each measured in one run, beside their targets.

    python tests/benchmarks/run.py                     all of them, a quarter of an hour
    python tests/benchmarks/run.py --quick             all of them, with more noise, a few minutes
    python tests/benchmarks/run.py transition tree     two of them

The peers are in the dependency group `benchmark` (`pip install --group benchmark`); one that is not installed
is left out, and so is a database server. A missed target is printed and is not a failure: times depend on the machine and its load.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Final

# A script's own directory is on the path; the package that it belongs to is two levels up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_MODULES: Final = {
    "transition": "persisted_transition",
    "tree": "tree_size",
    "bytes": "bytes_written",
    "engine": "durable_executions",
    "destinations": "hanging_destinations",
    "timers": "many_timers",
    "goals": "goal_state",
    "stores": "server_stores",
    "engine-servers": "durable_servers",
    "processes": "processes",
    "journal": "event_journal",
    "machines": "configured_machines",
    "fsm-redis": "configured_machines_on_redis",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(_MODULES)}")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(_MODULES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(_MODULES)}")
    harness = importlib.import_module("tests.benchmarks.harness")
    size = harness.Size.QUICK if arguments.quick else harness.Size.FULL
    for name in arguments.names or _MODULES:
        start = time.perf_counter()
        benchmark = importlib.import_module(f"tests.benchmarks.{_MODULES[name]}")
        for table in benchmark.measure(size):
            print(harness.render(table), flush=True)
        print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
