#!/usr/bin/env bash
# Builds the wheel of src/python in the dev profile, with what cargo has in target/, and tests it in target/python, a
# virtual environment. Needs Python 3.11 or newer with venv, and PyPI. Where the environment cannot be made it says so
# and succeeds: the tests are skipped then.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3} venv=$PWD/target/python
skip() {
  echo "no Python package: $1, so its tests are skipped" >&2
  exit 0
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || skip "Python 3.11 or newer is missing"
stamp=$(cksum tests/python/requirements.txt | cut -d' ' -f1)
if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
  "$python" -m venv --clear "$venv" &&
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --timeout 20 --retries 1 \
      -r tests/python/requirements.txt || skip "$python could not install tests/python/requirements.txt"
  echo "$stamp" > "$venv/stamp"
fi
rm -rf target/wheels
"$venv/bin/maturin" build --locked --quiet -i "$venv/bin/python" -m src/python/Cargo.toml -o target/wheels "$@"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall target/wheels/*.whl
"$venv/bin/ruff" check --quiet --config src/python/pyproject.toml src/python tests/python
"$venv/bin/ruff" format --quiet --check --config src/python/pyproject.toml src/python tests/python
(cd src/python && "$venv/bin/mypy" --no-error-summary)
(cd tests/python && "$venv/bin/mypy" --no-error-summary --strict sample.py)
"$venv/bin/python" -m pytest -q -p no:cacheprovider tests/python
