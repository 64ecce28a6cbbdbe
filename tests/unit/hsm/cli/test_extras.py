"""Commands without the extras that they do not need, and what they say of those that they do need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The command line, in an environment where some packages are not installed.
WITHOUT = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled())
from hsm.cli import main
main()
"""
BEYOND_FSM = ("redis", "aiobotocore", "botocore", "opentelemetry", "psycopg", "asyncmy", "cattrs")
SERVE = "fsm serve --db sqlite:///machines.db --insecure --listen localhost:0"


def hsm(folder: Path, missing: tuple[str, ...], command: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", WITHOUT.format(missing=missing), *command.split()]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_machines_are_kept_and_drawn_with_the_extras_that_the_guide_installs(tmp_path: Path) -> None:
    (tmp_path / "door.yaml").write_text(
        "apiVersion: v1alpha\nkind: Configuration\nspec:\n  name: door\n  version: v1\n  states: [open, shut]\n"
        "  startingState: open\n  transitions: [{from: open, to: shut, event: close}]\n"
    )
    database = "--db sqlite:///machines.db"
    for command in (f"fsm apply door.yaml {database}", f"fsm diagram door:v1 {database}"):
        ended = hsm(tmp_path, BEYOND_FSM, command)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert (
        "memory:// is a new, empty database"
        in hsm(tmp_path, BEYOND_FSM, "fsm serve --db memory:// --insecure").stderr
    )


@pytest.mark.parametrize(
    ("missing", "command", "says"),
    [
        ("grpc", "fsm states door", "this command needs grpc: pip install 'hsm-toolkit[fsm]'"),
        (
            "redis",
            "fsm states door --db redis://localhost --redis-layout",
            "--redis-layout needs redis: pip install 'hsm-toolkit[redis]'",
        ),
        (
            "redis",
            f"{SERVE} --stream-url redis://localhost --stream-events events",
            "a stream needs redis: pip install 'hsm-toolkit[redis]'",
        ),
        ("aiobotocore", f"{SERVE} --sqs-events events", "Amazon SQS needs aiobotocore: pip install"),
        ("opentelemetry", f"{SERVE} --otel", "--otel needs opentelemetry: pip install 'hsm-toolkit[otel]'"),
        ("rich", "stores", "the command line needs rich: pip install 'hsm-toolkit[cli]'"),
    ],
)
def test_extra_that_is_missing_is_named_in_one_line(
    tmp_path: Path, missing: str, command: str, says: str
) -> None:
    ended = hsm(tmp_path, (missing,), command)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"hsm: {says}")
    assert ended.stderr.count("\n") == 1
