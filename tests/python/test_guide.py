"""The examples of the guide."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_examples_of_the_guide_run(tmp_path: Path) -> None:
    """Breaks where an example of the guide, run after those before it, does not do what it says."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "spec/guide-python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    (tmp_path / "target/guide").mkdir(parents=True)
    command = [sys.executable, "-c", "\n".join(blocks)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith("TL0003 "), run.stdout
