#!/usr/bin/env bash
# The paper's motivating example, measured: a fleet of LoRAs in, audit, retrain as tl6, store, audit again.
#
#   benches/walkthrough.sh [USERS] [TASKS]      needs `tlkit` on the path, or TLKIT=target/release/tlkit
#
# Everything is made here, from the model and the data in fixtures/, in a temporary folder.
set -euo pipefail
users=${1:-4} tasks=${2:-3}
tlkit=$(realpath "$(command -v "${TLKIT:-tlkit}")")
fixtures=$(cd "$(dirname "$0")/../fixtures" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

say() { printf '\n$ %s\n' "$*"; }
# Each user and task has data of its own: every USERS × TASKS-th line.
all=$((users * tasks))
for n in $(seq 0 $((all - 1))); do
  awk -v n="$n" -v all="$all" 'NR % all == n' "$fixtures/task/train.jsonl" > "data-$n.jsonl"
done
train() { # method, n, arguments
  "$tlkit" train --model "$fixtures/llama-tiny" --data "data-$2.jsonl" --valid "$fixtures/task/valid.jsonl" \
    --method "$1" --rank 8 --lr 0.02 --max-steps 30 --global-batch 16 --eval-every 10 --seed "$2" --json "${@:3}"
}
mean() { awk -F'[:,]' '/"valid_loss"/ { sum += $2; n++ } END { printf "%.3f", sum / n }' "$@"; }

echo "1. $users users x $tasks tasks, a LoRA each, as PEFT directories"
for n in $(seq 0 $((all - 1))); do
  mkdir -p "loras/user-$((n / tasks))"
  train lora "$n" -o "lora-$n.tl" --peft "loras/user-$((n / tasks))/task-$((n % tasks))" > "lora-$n.json"
done
echo "   mean validation loss $(mean lora-*.json) nats per token"

echo; echo "2. What they cost, and would cost"
say "tlkit audit loras --template '{user}/{task}'"
"$tlkit" audit loras --template '{user}/{task}'

echo; echo "3. The same tasks trained as tl6, and put into a store"
say "tlkit store init fleet"
"$tlkit" store init fleet > /dev/null
for n in $(seq 0 $((all - 1))); do
  train tl6 "$n" -o "tl6-$n.tl" > "tl6-$n.json"
  "$tlkit" store put fleet "user-$((n / tasks))/task-$((n % tasks))" "tl6-$n.tl" > /dev/null
done
echo "   mean validation loss $(mean tl6-*.json) nats per token"

echo; echo "4. What they cost now"
say "tlkit audit fleet"
"$tlkit" audit fleet
after=$(find fleet -type f -printf "%s\n" | awk "{ s += \$1 } END { print s }")
before=$(find loras -type f -printf '%s\n' | awk '{ s += $1 } END { print s }')
echo
echo "bytes of all files: $before as LoRA, $after as tl6 in the store, $(awk -v a="$before" -v b="$after" 'BEGIN { printf "%.1f", a / b }') times less"
