#!/bin/sh
# Fuzzes every target for SECONDS each (60 by default): tests/fuzz/run.sh [SECONDS] [TARGET...]
#
# Installs cargo-fuzz under tests/fuzz/target where it is not installed yet. The sanitizer needs a
# nightly compiler, or RUSTC_BOOTSTRAP=1 with a stable one, which this script sets; a C++ compiler
# builds libFuzzer. Inputs that break a target are left in tests/fuzz/artifacts/TARGET; run
#     RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz TARGET tests/fuzz/artifacts/TARGET/FILE
# to see one again. What was learnt is kept in tests/fuzz/corpus, which is not committed.
#
# Leaks are not looked for: threads that have not ended when one is counted look like one.
#
# Prints one line for each target: executions, coverage (edges, features), corpus. Exits with 1
# where a target crashed, ran out of its 2 GB of memory, or took more than 10 s for one input.
set -eu
cd "$(dirname "$0")/../.."
fuzz=tests/fuzz
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- safetensors_header manifest packed_tensor adapter_config torch_pickle tl_file store_object merge_staging undo_file tokenizer chat_template store_json quantised_base nemo_archive mlx_adapter coded_tensor registry_manifest

export RUSTC_BOOTSTRAP=1
PATH="$PWD/$fuzz/target/tools/bin:$PATH"
command -v cargo-fuzz >/dev/null ||
    cargo install cargo-fuzz --version 0.13.2 --locked --root "$fuzz/target/tools" >&2

shm=/dev/shm
[ -w $shm ] || shm=/tmp
scratch=$(mktemp -d $shm/tlkit-fuzz.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

failed=0
for target in "$@"; do
    corpus=$fuzz/corpus/$target
    log=$fuzz/target/$target.log
    mkdir -p "$corpus" "$fuzz/target"
    seeds=$fuzz/seeds/$target
    case $target in
    safetensors_header | tl_file) seeds="fixtures/v1 fixtures/v1/malformed" ;;
    nemo_archive) seeds="$seeds fixtures/nemo" ;;
    esac
    case $target in
    registry_manifest) features="--features cloud" ;;
    tokenizer | chat_template) features="--features train" ;;
    *) features="" ;;
    esac
    # shellcheck disable=SC2086 # lists of options and of folders
    if cargo fuzz build --fuzz-dir "$fuzz" --codegen-units 16 $features "$target" >"$log" 2>&1 &&
        TMPDIR=$scratch cargo fuzz run --fuzz-dir "$fuzz" --codegen-units 16 $features "$target" "$corpus" $seeds -- \
            -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -max_len=16384 \
            -print_final_stats=1 -detect_leaks=0 >"$log" 2>&1; then
        result=ok
    else
        result="FAILED, see $log"
        failed=1
    fi
    execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    coverage=$(grep -o 'cov: [0-9]* ft: [0-9]* corp: [0-9]*' "$log" | tail -n 1)
    echo "$target: ${execs:-0} execs, ${coverage:-no coverage}, $result"
done
exit $failed
