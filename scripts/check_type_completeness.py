"""Reads a report of `pyright --verifytypes --outputjson`; fails unless every public name is fully typed."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Lists the names that are not fully typed, and why."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    completeness = report["typeCompleteness"]
    counts = completeness["exportedSymbolCounts"]
    total = sum(counts.values())
    for symbol in completeness["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            reasons = "; ".join(diagnostic["message"] for diagnostic in symbol["diagnostics"])
            print(f"{symbol['name']}: {reasons}")
    print(f"{completeness['packageName']}: {counts['withKnownType']} of {total} public names fully typed")
    if total == 0 or counts["withKnownType"] != total:
        sys.exit(1)


if __name__ == "__main__":
    main()
