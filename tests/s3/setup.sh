#!/usr/bin/env bash
# Makes target/s3-server: an S3 server (moto) that tests/s3 starts on loopback. Needs python3 with venv, and PyPI.
# It does nothing where the server is there already. Where it cannot be made it says so and succeeds: the test then
# says that it was skipped.
set -uo pipefail
cd "$(dirname "$0")/../.."
venv=$PWD/target/s3-server
stamp=$(cksum tests/s3/requirements.txt | cut -d' ' -f1)
[ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && exit 0

if "${PYTHON:-python3}" -m venv --clear "$venv" &&
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --timeout 20 --retries 1 \
    -r tests/s3/requirements.txt &&
  "$venv/bin/python" -c 'import moto.server'; then
  echo "$stamp" > "$venv/stamp"
else
  rm -rf "$venv"
  echo "no S3 server: python3 could not install tests/s3/requirements.txt, so the S3 test will be skipped" >&2
fi
