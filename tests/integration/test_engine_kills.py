"""A process with an engine on SQLite is killed a few times; `tests/crash` does the same many times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "crash" / "engine_kills.py"


def test_killed_engine_loses_no_acknowledged_update_and_leaves_none_half_done() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "lost 0, half done 0" in result.stdout
