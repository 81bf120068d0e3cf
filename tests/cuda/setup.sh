#!/usr/bin/env bash
# Makes target/nvrtc: NVIDIA's run-time compiler, with which the tests compile the kernels for sm_80 and sm_90. Needs no
# GPU; python3 with pip, and PyPI. Prints the folder of the library, to be put on LD_LIBRARY_PATH. Where it cannot be
# made it says so and prints nothing: the test then says that it was skipped.
set -uo pipefail
cd "$(dirname "$0")/../.."
dir=$PWD/target/nvrtc
stamp=$(cksum tests/cuda/requirements.txt | cut -d' ' -f1)
if [ "$(cat "$dir/stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$dir"
  if PIP_ROOT_USER_ACTION=ignore "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --timeout 20 --retries 1 --no-compile \
    --target "$dir" -r tests/cuda/requirements.txt >&2; then
    echo "$stamp" > "$dir/stamp"
  else
    rm -rf "$dir"
    echo "no NVRTC: python3 could not install tests/cuda/requirements.txt, so its test will be skipped" >&2
    exit 0
  fi
fi
echo "$dir/nvidia/cu13/lib"
