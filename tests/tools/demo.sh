#!/bin/sh
# What `make demo` runs: the commands a user would type, with the shipped trace. Needs `eplb` on the PATH.
set -eu
load=${SAMPLE:-traces/eplb_traces/samples/moe-435m.parquet}
out=${OUT:-demo-out}
mkdir -p "$out"

run() {
    echo
    echo "\$ $*"
    "$@"
}

run eplb trace info "$load"
run eplb compare "$load" --ranks 32 --nodes 4 --redundant 32
run eplb plan "$load" --ranks 32 --nodes 4 --redundant 32 --strategy greedy -o "$out/plan.json"
run eplb convert "$out/plan.json" "$out/sglang.json" --to sglang
run eplb convert "$out/plan.json" "$out/vllm.json" --to vllm
run eplb convert "$out/plan.json" "$out/vllm.jsonl" --to vllm
run eplb convert "$out/plan.json" "$out/ascend.json" --to ascend
run eplb convert "$out/plan.json" "$out/trtllm.yaml" --to trtllm
run eplb convert "$out/plan.json" "$out/omni.npy" --to omni
run eplb convert "$out/plan.json" "$out/deepseek.npz" --to deepseek
run eplb check "$out/sglang.json" --engine sglang --ranks 32 --num-experts 256

echo
echo "The files are in $out. Those named NAME.eplb.json say where NAME comes from; engines do not read them."
