#!/usr/bin/env bash
# build.sh FOLDER [PREFIX]: llama.cpp from the source package of llama-cpp-python 0.3.36 on PyPI, with
# external_attention.patch, and our adapter for it, in FOLDER. PREFIX: where turboquant is installed
# (cmake --install), if not in a standard place. NO_PATCH=1: llama.cpp as it comes. Needs cmake, ninja,
# a C++ compiler and python3 with pip; ccache is used if it is there. Takes ten minutes and more.
# Other programs of llama.cpp: cmake --build FOLDER/build --target llama-perplexity, and the same LD_PRELOAD.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
prefix=${2:-/usr/local}
version=0.3.36

archive=$folder/llama_cpp_python-$version.tar.gz
[ -f "$archive" ] || python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python \
  --dest "$folder" "llama-cpp-python==$version"
source=$folder/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -d "$source" ]; then
  tar -xzf "$archive" -C "$folder" "llama_cpp_python-$version/vendor/llama.cpp"
fi
if [ -z "${NO_PATCH:-}" ] && [ ! -f "$source/src/llama-external-attention.h" ]; then
  patch --directory="$source" --strip=1 --fuzz=0 <"$here/external_attention.patch"
fi

launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
cmake -S "$source" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
  -DGGML_NATIVE=ON -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF "${launcher[@]}"
cmake --build "$folder/build" --target llama-simple
cmake -S "$here" -B "$folder/adapter" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DLLAMA_SOURCE="$source" -DLLAMA_BUILD="$folder/build" -DCMAKE_PREFIX_PATH="$prefix"
cmake --build "$folder/adapter"
