#!/usr/bin/env bash
# The invariants of ARCHITECTURE.md that `cargo tree` can see: who may know whom, and one version of each package.
set -euo pipefail
cd "$(dirname "$0")/.."

# The names of everything that a package pulls in, itself not counted.
deps() { cargo tree --locked --edges normal --prefix none --format '{p}' "$@" | tail -n +2 | cut -d' ' -f1 | sort -u; }

# refuse PACKAGE PATTERN CARGO-TREE-ARGS…: nothing that matches may be among the dependencies.
refuse() {
    local package=$1 pattern=$2
    shift 2
    if found=$(deps -p "$package" "$@" | grep -Ex "$pattern"); then
        echo "$package ($*) must not depend on: $found" >&2
        exit 1
    fi
    echo "ok: $package $* knows nothing of $pattern"
}

engines='candle-.*|tch|torch-sys|ort|ort-sys'
mpi='mpi|mpi-sys|llama-parallel-mpi'
refuse llama-core "$engines|llama-backend-.*|$mpi" --no-default-features
refuse llama-dialog "$engines|llama-.*|tokenizers|memmap2|half|safetensors|zip" --all-features
refuse llama-backend "$engines|$mpi|llama-.*" --all-features
refuse llama-backend-candle 'llama-core|llama-dialog|llama-backend-tch|llama-backend-onnx|tokenizers-cli|tch|torch-sys|ort|ort-sys'
refuse llama-backend-tch 'llama-core|llama-dialog|llama-backend-candle|llama-backend-onnx|candle-.*|tokenizers|ort|ort-sys'
refuse llama-backend-onnx 'llama-core|llama-dialog|llama-backend-candle|llama-backend-tch|candle-.*|tch|torch-sys|tokenizers'
refuse llama-parallel-mpi "$engines|llama-core|llama-dialog|llama-backend-.*|tokenizers"
for backend in candle tch onnx; do refuse "llama-backend-$backend" "$mpi"; done

# A plain build asks for no shared library.
if found=$(cargo tree --locked --edges all --prefix none --format '{p}' | cut -d' ' -f1 | grep -Ex "tch|torch-sys|ort|ort-sys|$mpi"); then
    echo "the default members must not depend on: $found" >&2
    exit 1
fi
echo "ok: the default members ask for no shared library"

# `cargo add llama-core` is the candle backend on the processor, and no more.
refuse llama-core "cudarc|candle-kernels|candle-metal-kernels|tch|torch-sys|ort|ort-sys|clap|criterion|proptest|$mpi"

# One version of each, as built here. (The lock file also has the thiserror 1 that candle's gemm asks for on macOS alone, through sysctl.)
# What tch asks for is not counted: it brings readers of its own that no feature turns off and nobody here calls, with
# safetensors 0.3, thiserror 1, zip 0.6 and rand 0.8. They are in a build that has the feature `tch`, and in no other.
built=$(cargo tree --locked --workspace --all-features --prune tch --prune torch-sys --edges all --prefix none --format '{p}' |
    cut -d' ' -f1,2 | sort -u)
for package in candle-core clap criterion half memmap2 ort proptest safetensors serde thiserror tokenizers; do
    versions=$(grep -c "^$package v" <<<"$built")
    if [ "$versions" != 1 ]; then
        echo "$versions versions of $package are built, expected 1" >&2
        exit 1
    fi
done
echo "ok: one version of each package, tch's own aside"

# The backends' features are named in one file of llama-core's.
files=$(grep -rlE 'feature = "(candle|tch|onnx)"' llama-core/src || true)
if [ "$files" != llama-core/src/registry.rs ]; then
    printf 'cfg(feature = "<backend>") belongs in llama-core/src/registry.rs alone, found in:\n%s\n' "$files" >&2
    exit 1
fi
echo "ok: one file knows the backends' features"
