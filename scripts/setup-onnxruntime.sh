#!/usr/bin/env bash
# Puts ONNX Runtime 1.31.1 for the CPU into .engines/onnxruntime (or the folder given), from PyPI alone.
#
# Whoever has the library already sets ORT_DYLIB_PATH to its file instead and needs none of this.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.31.1
dest=$(realpath -m "${1:-.engines/onnxruntime}")
sha256=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f

if [ "$(cat "$dest/build-version" 2>/dev/null)" = "$version" ]; then
    echo "ONNX Runtime $version is in $dest"
    exit 0
fi
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
    echo "this script knows the wheel for Linux on x86-64 alone: set ORT_DYLIB_PATH to the libonnxruntime $version that you have" >&2
    exit 1
fi
for tool in python3 unzip sha256sum; do
    command -v "$tool" >/dev/null || { echo "$tool is needed to set up ONNX Runtime" >&2; exit 1; }
done

mkdir -p "$(dirname "$dest")"
work=$(mktemp -d "$dest.XXXXXX") # beside the destination, so that the last step is one rename
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work" \
    --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 "onnxruntime==$version"
echo "$sha256  $(ls "$work"/onnxruntime-"$version"-*.whl)" | sha256sum --check --quiet
mkdir "$work/lib"
unzip -qj "$work"/*.whl "onnxruntime/capi/libonnxruntime.so.$version" -d "$work/lib"
ln -s "libonnxruntime.so.$version" "$work/lib/libonnxruntime.so"
rm "$work"/*.whl
echo "$version" >"$work/build-version"
chmod 755 "$work"
rm -rf "$dest"
mv "$work" "$dest"
trap - EXIT
echo "ONNX Runtime $version is in $dest"
