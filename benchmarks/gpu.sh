#!/usr/bin/env bash
# All that a short time on a GPU should show, the most telling first, in one command that wastes no minute.
#
#   benchmarks/gpu.sh [--cpu] OUT [SECONDS]
#
# OUT/results.jsonl gets a line for each stage as soon as it ends: its status, seconds and report. OUT/log.txt is what the
# stages printed. Each has a limit of its own, and together they end after SECONDS (540). Started again with the same OUT, it
# leaves out the stages that are finished; WORK (/tmp/peft-be-gpu) keeps what one stage leaves for another.
#
# With --cpu, all stages run on the CPU with a tiny random model and settings that mean nothing, so that no typo is
# first found on a GPU. PYTHON is the interpreter (python3).
set -uo pipefail

small=
if [ "${1-}" = --cpu ]; then small=1; shift; fi
out=${1:?usage: benchmarks/gpu.sh [--cpu] OUT [SECONDS]} seconds=${2:-${small:+3600}}
deadline=$((SECONDS + ${seconds:-540}))
python=${PYTHON:-python3} work=${WORK:-/tmp/peft-be-gpu}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out" "$work" || exit 1
out=$(cd "$out" && pwd) work=$(cd "$work" && pwd)
results=$out/results.jsonl log=$out/log.txt
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export PEFT_BE_CACHE=${PEFT_BE_CACHE:-$work/cache} PEFT_BE_GPU_REPORT=$work/tests.json
failed=0

# record NAME STATUS SECONDS: a line of the results, with what the stage had reported by then
record() {
    "$python" - "$@" "$work/$1" >>"$results" <<'PY'
import json, pathlib, sys

name, status, seconds, stem = sys.argv[1:]
report, json_file, lines_file = None, pathlib.Path(f"{stem}.json"), pathlib.Path(f"{stem}.jsonl")
if json_file.is_file():
    report = json.loads(json_file.read_text())
elif lines_file.is_file():
    report = [json.loads(line) for line in lines_file.read_text().splitlines()]
print(json.dumps({"stage": name, "status": status, "seconds": int(seconds), "report": report}))
PY
}

# stage NAME LIMIT COMMAND...: run it, for LIMIT seconds at most
stage() {
    local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS)) status=ok
    shift 2
    if grep -qs "^{\"stage\": \"$name\", \"status\": \"ok\"" "$results"; then
        echo "== $name: was finished before"
        return
    fi
    if [ "$left" -lt 15 ]; then
        echo "== $name: no time is left"
        return
    fi
    if [ -n "$small" ]; then limit=$((10 * limit)); fi # the machine may be busy
    limit=$((limit < left ? limit : left))
    echo "== $name, $limit s at most"
    rm -f "$work/$name.json"
    timeout --kill-after=5 "$limit" "$@" >"$work/$name.log" 2>&1
    case $? in
        0) ;;
        124 | 137) status="stopped at its limit" ;;
        *) status=failed ;;
    esac
    # Progress bars write one line again and again
    { echo "== $name"; tr '\r' '\n' <"$work/$name.log" | grep -v '%|'; } >>"$log"
    record "$name" "$status" $((SECONDS - begin)) || status=failed
    if [ "$status" = ok ]; then
        tail -n 4 "$log" | cut -c 1-300
    else
        tail -n 30 "$log" | cut -c 1-300
        # A study takes all the time that is left
        if [ "$name" != study ] || [ "$status" = failed ]; then failed=1; fi
    fi
    echo "== $name: $status after $((SECONDS - begin)) s"
}

# script NAME LIMIT SCRIPT ARGUMENTS...: a stage that is a script of this folder
script() {
    stage "$1" "$2" "$python" "$root/benchmarks/$3.py" "${@:4}" --json "$work/$1.json"
}

# tiny OPTIONS...: with --cpu only; the last value of an option counts
tiny() {
    if [ -n "$small" ]; then echo "$@"; fi
}

"$python" -c 'import torch
print(f"torch {torch.__version__},", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' || exit 1
model=smollm2 cells=$root/benchmarks/gpu.jsonl
if [ -n "$small" ]; then
    export PEFT_BE_GPU_TESTS_ON_CPU=1 CUDA_VISIBLE_DEVICES=
    model=$work/model cells=$work/cells.jsonl
    "$python" - "$root/benchmarks/gpu.jsonl" "$model" "$cells" >>"$log" 2>&1 <<'PY' || { tail "$log"; exit 1; }
import json, pathlib, sys

from transformers import AutoTokenizer

from tests.tiny import TOKENIZER, save_tiny_llama

manifest, model, cells = map(pathlib.Path, sys.argv[1:])
save_tiny_llama(model, AutoTokenizer.from_pretrained(TOKENIZER), context=4096)
with cells.open("w") as file:
    for line in manifest.read_text().splitlines()[:3]:
        cell = json.loads(line)
        for name in ("prompt", "queries", "test_queries"):
            cell[name] = str(manifest.parent / cell[name])
        cell["args"] |= {"model": str(model), "max_answer_length": 4}
        print(json.dumps({**cell, "max_steps": 2}), file=file)
PY
fi

# The limits make 540 seconds. They are guesses, about half as much again as each stage is expected to take on an H100

# 1. Does it run?
stage tests 110 "$python" -m pytest -q -p no:cacheprovider --rootdir "$root" -m gpu "$root/tests/gpu"
# 2. The main job
script demo 120 demo "$work/adapter" --model "$model" \
    $(tiny --max-steps 4 --max-queries 12 --answer-length 4 --batch-sizes 2 3 --rounds 2)
# 3. The claims
script training 60 training --model "$model" --prompt-tokens 300 1100 --queries 64 --rounds 4 --steps-per-round 4 \
    $(tiny --queries 4 --answer-length 4 --batch-size 2 --rounds 2)
stage bench 50 "$python" -m peft_be.cli bench "$work/adapter" --model "$model" --prompt "$root/examples/demo/prompt.txt" \
    --queries "$root/examples/demo/test_queries.jsonl" --batch-sizes "$(tiny 1,2 | grep . || echo 1,16,64)" \
    --new-tokens 16 --repeats 4 --json "$work/bench.json" $(tiny --new-tokens 2 --repeats 2)
script many-8 45 many --model "$model" --prompts 8 --alone 2 \
    $(tiny --prompts 2 --alone 1 --queries 4 --answer-length 4 --steps 2)
script scaling 50 scaling --model "$model" --axes vocab --vocab-values 49152 262144 --rounds 7 \
    $(tiny --vocab-values 8192 --queries 4 --answer-length 4 --batch-size 2 --rounds 2)
script layer 15 layer --vocab 49152 262144 --dim 576 4096 $(tiny --vocab 512 1024 --dim 16 --rounds 3 --length 16)
script many-32 70 many --model "$model" --prompts 32 --alone 2 \
    $(tiny --prompts 3 --alone 1 --queries 4 --answer-length 4 --steps 2)
# 4. Padding, and FlashAttention if it is there
script attention 20 attention --model "$model" $(tiny --batch-size 3 --answer-length 4 --rounds 2)
# 5. The study, with the rest of the time
stage study 3600 "$python" "$root/research/study.py" "$cells" "$work/study.jsonl" --work "$work/study"

echo "== The results are in $results, and what was printed is in $log"
exit $failed
