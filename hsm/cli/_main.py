"""The entry point: it works without the extras, to say which one is missing."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        from hsm.cli._app import run  # noqa: PLC0415 - needs an extra
    except ImportError as error:
        if (error.name or "hsm").partition(".")[0] == "hsm":
            raise
        print(  # noqa: T201 - there is nothing better to print with
            f"hsm: the command line needs {error.name}: pip install 'hsm-toolkit[cli]'", file=sys.stderr
        )
        sys.exit(2)
    sys.exit(run())
