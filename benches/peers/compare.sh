#!/usr/bin/env bash
# Ours and other engines in turns on the same file: builds everything, makes random models once, prints the ratios and appends the
# rounds to benches/record/llama_cpp.csv. Needs cmake, a C++ compiler and libclang (Debian: cmake g++ libclang-dev). For example
#
#     benches/peers/compare.sh                              # everything: an hour
#     benches/peers/compare.sh --type q4_0 --threads 2      # minutes
#     PEERS='llama-cpp candle' benches/peers/compare.sh --type q4_0
#     benches/peers/compare.sh -b 8 -p 0; benches/peers/compare.sh -d 2048 -p 0
#
# Ours is built with no flags, as `cargo add` builds it; theirs for this processor.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

cargo build --release --locked -p benches --bin llama-bench --bin compare
programs=()
for peer in ${PEERS:-llama-cpp}; do
    (cd "benches/peers/$peer" && CARGO_TARGET_DIR="$target/peers/$peer" RUSTFLAGS=-Ctarget-cpu=native cargo build --release --locked)
    programs+=("$target/peers/$peer/release/$peer-peer")
    "${programs[-1]}" info
done
exec ${BENCH_WRAPPER:-} "$target/release/compare" --folder "$target/models" "$@" --peer "${programs[@]}"
