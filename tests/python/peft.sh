#!/usr/bin/env bash
# Tests tlkit.peft: needs tests/peft/setup.sh and the wheel of tests/python/run.sh. With --suite PEFT's own suite runs too
# (10 minutes). Where torch is not set up it says so and succeeds: the tests are skipped then.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$PWD/tests/peft/venv site=$PWD/target/peft-site
skip() {
  echo "no tlkit.peft: $1, so its tests are skipped" >&2
  exit 0
}
"$venv/bin/python" -c 'import torch, transformers, peft' 2>/dev/null || skip "tests/peft/setup.sh has not been run"
stamp=$(cat tests/peft/suite.txt tests/peft/requirements.txt | cksum | cut -d' ' -f1)
if [ "$(cat "$site/stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$site"
  mkdir -p "$site"
  # What is there already stays as it is.
  "$venv/bin/python" -m pip freeze 2>/dev/null | grep -E '^[A-Za-z0-9_.-]+==' | grep -v -i '^nvidia\|^torch' > "$site/constraints"
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --timeout 20 --retries 1 --target "$site")
  "${pip[@]}" -c "$site/constraints" -r tests/peft/suite.txt && "${pip[@]}" --no-deps trl || skip "PyPI gives no pytest"
  echo "$stamp" > "$site/stamp"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$site" target/wheels/*.whl
# The venv's own packages first: torch would not like another NumPy.
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export PYTHONPATH="$packages:$site" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$venv/bin/python" -m pytest -q -p no:cacheprovider -W ignore -n 2 tests/python/peft
# The trainer of a wheel in the dev profile takes minutes for each method.
if [ -x target/release/tlkit ]; then
  "$venv/bin/python" tests/peft/trainer.py --tlkit target/release/tlkit
else
  echo "no target/release/tlkit, so PEFT's losses are not held against those of tlkit train" >&2
fi
if [ "${1:-}" = --suite ]; then
  "$venv/bin/python" tests/peft/suite.py -- -n 2
fi
