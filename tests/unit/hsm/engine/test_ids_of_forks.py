from __future__ import annotations

import subprocess
import sys

FORKED = """
import os, sys
from hsm.engine import EngineOptions
from hsm.engine.ids import IdSource

options = EngineOptions()
for _ in range(2):
    if os.fork() == 0:
        ids = IdSource(options.random)
        sys.stdout.write(f"{ids.new(10**18)} {ids.new(10**18)}\\n")
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_forked_processes_do_not_make_the_same_ids() -> None:
    """Two executions of the same ids would write each other's task rows over."""
    told = subprocess.run([sys.executable, "-c", FORKED], check=True, capture_output=True, text=True).stdout
    assert len(set(told.split())) == 4
