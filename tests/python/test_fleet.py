"""The script and the query of the guide to fleets; each is left out by name where Ray or DuckDB is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tlkit

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "spec/guide-fleet.md").read_text()
BASE = ROOT / "fixtures/llama-tiny"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A store with adapters of two users."""
    store = tlkit.Store.init(tmp_path / "source")
    for user in ("ann", "bob"):
        for task, adapter in [("style", "style-peft"), ("words", "lora")]:
            store.put(f"{user}/{task}", ROOT / "fixtures/adapters" / adapter, base=BASE)
    tlkit.Store.init(tmp_path / "target")
    return tmp_path


def test_the_script_and_the_query(source: Path) -> None:
    """Breaks where the script leaves out an adapter, fails on one, or writes no audit that the query reads."""
    pytest.importorskip("ray")
    script = source / "shrink.py"
    script.write_text(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)[1])  # type: ignore[index]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    stores = [str(source / "source"), str(source / "target")]
    command = [sys.executable, str(script), *stores, str(BASE), "0.5"]
    run = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    rows = [line for line in run.stdout.splitlines() if line.startswith("{'name'")]
    assert len(rows) == 4 and all("'code': None" in row for row in rows), run.stdout
    assert len(tlkit.Store(source / "target").list()) == 4

    duckdb = pytest.importorskip("duckdb")
    query = re.search(r"```sql\n(.*?)```", GUIDE, re.DOTALL)[1]  # type: ignore[index]
    query = query.replace("'before.parquet'", f"'{source / 'before.parquet'}'")
    answer = duckdb.sql(query.replace("'after.parquet'", f"'{source / 'after.parquet'}'")).fetchall()
    assert sorted(row[0] for row in answer) == ["ann", "bob"]
    assert all(row[1] == 2 and 0 < row[3] <= row[2] for row in answer), answer
