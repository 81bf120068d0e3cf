#!/usr/bin/env bash
# Makes tests/peft/venv: torch for the CPU, transformers and PEFT at fixed versions, for check.py beside this file and
# for benches/merge/peft_merge.py. Needs python3.11+, a C compiler and binutils; about 1.6 GB on disk, half a
# gigabyte to download. Run it as often as you like: it does nothing where the environment is already right.
#
#   tests/peft/setup.sh            # then: tests/peft/venv/bin/python tests/peft/check.py --help
#
# The torch wheel on PyPI is built for CUDA and cannot be imported without some 2 GB of CUDA libraries, none of which
# a CPU run calls. Here each of them is a stub: a library of the right name and symbol version whose functions all
# report failure. Nothing of torch's CPU code is changed.
set -euo pipefail
cd "$(dirname "$0")"
venv=$PWD/venv
stamp=$(cat requirements.txt setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then
  echo "$venv (already set up)"
  exit 0
fi

"${PYTHON:-python3}" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt

lib=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/torch/lib
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# Every CUDA function torch's libraries ask for, but for those of the real runtime.
nm -D --undefined-only "$lib"/*.so |
  sed -nE '/libcudart/d; s/.* [Uw] ((cu|nccl|nv)[A-Za-z0-9_]+).*/int \1(void) { return 1; }/p' |
  sort -u > "$tmp/stub.c"
# The symbol version torch expects of a library is its file name, save for NVSHMEM's.
for name in $(readelf -dW "$lib"/*.so | sed -nE '/NEEDED/s/.*\[(lib(cu|nccl|nv)[^]]*)\].*/\1/p' | sort -u); do
  case $name in
    libcudart.*|libcuda.*) continue ;;
    libnvshmem_host.*) version=NVSHMEM ;;
    *) version=$name ;;
  esac
  echo "$version { global: *; };" > "$tmp/stub.map"
  "${CC:-cc}" -w -shared -fPIC "-Wl,-soname,$name" "-Wl,--version-script,$tmp/stub.map" -o "$lib/$name" "$tmp/stub.c"
done

"$venv/bin/python" - <<'PY'
import torch, transformers, peft
assert not torch.cuda.is_available() and (torch.eye(2) @ torch.ones(2, 2)).sum() == 4
print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
PY
echo "$stamp" > "$venv/stamp"
echo "$venv"
