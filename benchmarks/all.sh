#!/usr/bin/env bash
# Every claim of docs/performance.md on this machine, one after the other: nothing else should run. About 2 hours on two CPU
# cores, some minutes on a GPU.
#
# Example: benchmarks/all.sh figures persona-output
set -euo pipefail
out=${1:?folder for the figures} adapter=${2:?folder of the adapter that make demo-persona trains}
here=$(dirname "$0") demo=$(dirname "$0")/../examples/demo
mkdir -p "$out"
run() { echo "== $1"; python "$here/$1.py" "${@:2}" --json "$out/$1.json"; }
run layer
run training --memory --prompt-tokens 300 1100 4000 --rounds 2
run time_to_kl --resume
run many
run adapters
run scaling
run profile_step
run startup
peft-be bench "$adapter" --prompt "$demo/prompt.txt" --queries "$demo/test_queries.jsonl" --batch-sizes 1,4,16 --json "$out/bench.json"
