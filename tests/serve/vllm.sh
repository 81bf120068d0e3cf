#!/usr/bin/env bash
# Serves adapters of a store with vLLM on the CPU, and compares its tokens with PEFT's: tests/serve/serve_vllm.py.
#
#   tests/peft/setup.sh; tests/serve/vllm-setup.sh; tests/python/run.sh    # builds the wheel
#   tests/serve/vllm.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${VLLM_VENV:-$PWD/tests/serve/vllm-venv}
peft=${PEFT_PYTHON:-tests/peft/venv/bin/python}
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall target/wheels/tlkit-*.whl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
OMP_NUM_THREADS=1 "$peft" tests/serve/serve_vllm.py make "$work" --tlkit "$venv/bin/tlkit"
"$venv/bin/python" tests/serve/serve_vllm.py serve "$work" --tlkit "$venv/bin/tlkit"
