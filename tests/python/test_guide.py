"""The examples of the guide and of the package's page."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tlkit

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "last"), [("spec/guide-python.md", "TL0003 "), ("src/python/README.md", None)], ids=["guide", "package"]
)
def test_the_examples_run(page: str, last: str | None, tmp_path: Path) -> None:
    """Breaks where an example, run after those before it, does not do what it says."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    (tmp_path / "target/guide").mkdir(parents=True)
    command = [sys.executable, "-c", "\n".join(blocks)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    if last:
        assert run.stdout.splitlines()[-1].startswith(last), run.stdout


@pytest.mark.parametrize("table", ["pandas.json_normalize", "polars.DataFrame", "pyarrow.Table.from_pylist"])
def test_rows_of_an_audit_are_tables(table: str) -> None:
    """Breaks where a line of the guide makes no table of an audit's rows, with the libraries that are at hand."""
    assert f'`{table}(report["rows"])`' in (ROOT / "spec/guide-python.md").read_text()
    module, _, names = table.partition(".")
    make = functools.reduce(getattr, names.split("."), pytest.importorskip(module))
    rows = tlkit.audit(ROOT / "fixtures")["rows"]
    assert make(rows).shape[0] == len(rows) > 10
