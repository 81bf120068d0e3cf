#!/usr/bin/env bash
# Makes tests/serve/site: llama.cpp as a prebuilt library (34 MB), and a writer of GGUF models, for llama_cpp.py beside this file, which
# runs in the environment of tests/peft/setup.sh. Run it as often as you like: it does nothing where they are there.
set -euo pipefail
cd "$(dirname "$0")"
site=$PWD/site
stamp=$(sha256sum < requirements.txt | cut -d' ' -f1)
if [ "$(cat "$site/stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$site"
  "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --target "$site" -r requirements.txt
  echo "$stamp" > "$site/stamp"
fi
echo "$site"
