"""Reads a report of `pyright --verifytypes --outputjson`; fails unless every public name is fully typed."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Lists the names that are not fully typed, and why."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    completeness = report["typeCompleteness"]
    # The stubs that are generated for services say less than everything; they are no public API.
    names = [
        symbol
        for symbol in completeness["symbols"]
        if symbol["isExported"] and "_pb2_grpc" not in symbol["name"]
    ]
    known = 0
    for symbol in names:
        if symbol["isTypeKnown"]:
            known += 1
            continue
        reasons = "; ".join(diagnostic["message"] for diagnostic in symbol["diagnostics"])
        print(f"{symbol['name']}: {reasons}")
    print(f"{completeness['packageName']}: {known} of {len(names)} public names fully typed")
    if not names or known != len(names):
        sys.exit(1)


if __name__ == "__main__":
    main()
