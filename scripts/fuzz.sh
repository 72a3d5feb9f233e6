#!/usr/bin/env bash
# Runs every fuzz target for so many seconds, two at a time: scripts/fuzz.sh [SECONDS], 30 by default; 800 is an hour altogether. With names
# behind the seconds, those alone. Needs a C++ compiler; cargo-fuzz is installed where it is absent. The toolchain is the stable one: the sanitizer is a flag that it
# hides. What is found is kept in fuzz/found and goes on from there; what fails lies in fuzz/artifacts and is run again by
# `cargo fuzz run TARGET FILE`.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-30}
shift || true
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --version 0.13.2 --locked
export RUSTC_BOOTSTRAP=1
cargo fuzz build --sanitizer address

fuzz_one() {
    local target=$1 flags=() dictionary=fuzz/dictionaries/$1.txt log=fuzz/found/$1.log
    mkdir -p "fuzz/found/$target" "fuzz/artifacts/$target"
    if [ -f "$dictionary" ]; then flags+=("-dict=$dictionary"); fi
    # A length in a header is no reason to allocate: 64 MiB at once or 1 GiB altogether is a failure, and so are ten seconds.
    if ! cargo fuzz run --sanitizer address "$target" "fuzz/found/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=1024 \
        -print_final_stats=1 "${flags[@]}" >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "fuzz: $target failed"
        return 1
    fi
    awk -v target="$target" '
        match($0, /cov: [0-9]+ ft: [0-9]+/) { reached = substr($0, RSTART, RLENGTH) }
        /stat::number_of_executed_units/ { n = $2 }
        END { printf "fuzz: %s: %d executions, %s\n", target, n, reached }' "$log"
}
export seconds
export -f fuzz_one
targets=("$@")
if [ ${#targets[@]} = 0 ]; then mapfile -t targets < <(cargo fuzz list); fi
printf '%s\n' "${targets[@]}" | xargs -P 2 -I {} bash -euo pipefail -c 'fuzz_one {}'
