#!/usr/bin/env bash
# Makes what tests/clouds starts on loopback: target/s3-server, a server of S3 and of Google's XML API (moto; needs python3 with venv,
# and PyPI), and target/azure-server, one of Azure's blobs (Azurite; needs node and npm's registry).
# It does nothing where a server is there already. Where one cannot be made it says so and succeeds: its tests then say that they
# were skipped.
set -uo pipefail
cd "$(dirname "$0")/../.."
s3=$PWD/target/s3-server azure=$PWD/target/azure-server

stamp=$(cksum tests/clouds/s3/requirements.txt | cut -d' ' -f1)
if [ "$(cat "$s3/stamp" 2>/dev/null)" != "$stamp" ]; then
  if "${PYTHON:-python3}" -m venv --clear "$s3" &&
    "$s3/bin/python" -m pip install --quiet --disable-pip-version-check --timeout 20 --retries 1 \
      -r tests/clouds/s3/requirements.txt &&
    "$s3/bin/python" -c 'import moto.server'; then
    echo "$stamp" > "$s3/stamp"
  else
    rm -rf "$s3"
    echo "no S3 server: python3 could not install tests/clouds/s3/requirements.txt, so its tests will be skipped" >&2
  fi
fi

stamp=$(cksum tests/clouds/azure/package.json | cut -d' ' -f1)
if [ "$(cat "$azure/stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$azure"
  mkdir -p "$azure"
  cp tests/clouds/azure/package.json "$azure"
  if command -v npm >/dev/null &&
    (cd "$azure" && timeout 180 npm install --silent --no-audit --no-fund --ignore-scripts --fetch-retries 1 --fetch-timeout 20000); then
    echo "$stamp" > "$azure/stamp"
  else
    rm -rf "$azure"
    echo "no Azure server: npm could not install tests/clouds/azure/package.json, so its tests will be skipped" >&2
  fi
fi
