"""What a reader copies from README.md or the docs passes mypy --strict: the blocks of each page are one module."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_blocks_of_the_pages_pass_mypy(tmp_path: Path) -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        if blocks := BLOCK.findall(page.read_text(encoding="utf-8")):
            module = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
            (tmp_path / f"{module}.py").write_text("\n".join(blocks), encoding="utf-8")
    assert len(list(tmp_path.iterdir())) > 20
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml"]
    checked = subprocess.run(
        [*command, *map(str, tmp_path.iterdir())], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
