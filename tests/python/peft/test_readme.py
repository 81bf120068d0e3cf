"""The example of the README."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_example_of_the_readme_runs(tmp_path):
    """It trains, saves, merges and verifies, as it says."""
    section = (ROOT / "README.md").read_text().partition("## In Python")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "True"
