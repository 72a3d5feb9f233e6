#!/usr/bin/env bash
# Puts libtorch 2.13.0 for the CPU into .engines/libtorch (or the folder given), from PyPI alone.
#
# PyTorch's own download site has such a build, PyPI has only the one for CUDA. Of that wheel three libraries are kept.
# They ask for two libraries of CUDA's that a machine without a GPU lacks: stand-ins say that there is no device.
# Whoever has a libtorch already sets LIBTORCH to its folder instead and needs none of this.
set -euo pipefail
cd "$(dirname "$0")/.."

version=2.13.0
dest=$(realpath -m "${1:-.engines/libtorch}")
wheel=torch-$version-cp311-cp311-manylinux_2_28_x86_64.whl
sha256=60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7

if [ "$(cat "$dest/build-version" 2>/dev/null)" = "$version+cpu" ]; then
    echo "libtorch $version is in $dest"
    exit 0
fi
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
    echo "this script knows the wheel for Linux on x86-64 alone: set LIBTORCH to the folder of a libtorch $version" >&2
    exit 1
fi
for tool in python3 unzip gcc nm sha256sum strip; do
    command -v "$tool" >/dev/null || { echo "$tool is needed to set up libtorch" >&2; exit 1; }
done

mkdir -p "$(dirname "$dest")"
work=$(mktemp -d "$dest.XXXXXX") # beside the destination, so that the last step is one rename
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work" \
    --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 "torch==$version"
echo "$sha256  $work/$wheel" | sha256sum --check --quiet
unzip -q "$work/$wheel" 'torch/lib/libc10.so' 'torch/lib/libtorch_cpu.so' 'torch/lib/libgomp.so.1' 'torch/include/*' -d "$work"
rm "$work/$wheel"
lib=$work/torch/lib
strip --strip-unneeded "$lib"/*.so

# stand_in SONAME SYMBOL-PATTERN: a library with the functions that libtorch_cpu asks it for. Each answers 100, which is
# CUDA's cudaErrorNoDevice, but the one that turns errors into text.
stand_in() {
    local soname=$1
    nm -D --undefined-only "$lib/libtorch_cpu.so" | sed -n "s/^ *U \($2\)@\{1,2\}$soname\$/int \1(void) { return 100; }/p" >"$work/stub.c"
    sed -i 's/^int \(cudaGetErrorString\).*/const char *\1(int error) { return "no device"; }/' "$work/stub.c"
    echo "$soname { global: *; };" >"$work/stub.map"
    gcc -shared -fPIC -o "$lib/$soname" -Wl,-soname,"$soname" -Wl,--version-script="$work/stub.map" "$work/stub.c"
}
stand_in libcudart.so.13 'cuda[A-Za-z0-9_]*'
stand_in libcupti.so.13 'cupti[A-Za-z0-9_]*'
# The umbrella that programs link against; the wheel's own asks for libtorch_cuda.
: >"$work/stub.c"
gcc -shared -fPIC -o "$lib/libtorch.so" -Wl,-soname,libtorch.so "$work/stub.c" \
    -L"$lib" -Wl,--no-as-needed -ltorch_cpu -lc10 -Wl,-rpath,"\$ORIGIN" -Wl,--allow-shlib-undefined

echo "$version+cpu" >"$work/torch/build-version"
rm -rf "$dest"
mv "$work/torch" "$dest"
echo "libtorch $version is in $dest"
