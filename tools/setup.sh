#!/usr/bin/env bash
# setup.sh [GROUP...]: installs the missing Debian (bookworm) packages of the groups named; `build`
# when none is. Does nothing, and needs no rights, when all of them are there.
set -euo pipefail

declare -A groups=(
  # What building the libraries, programs, tests and benchmarks takes.
  [build]="g++ cmake ninja-build ccache python3 libfaiss-dev libopenblas-dev libabsl-dev libhdf5-dev
           libcli11-dev nlohmann-json3-dev librocksdb-dev libisal-dev libzstd-dev libgtest-dev libgmock-dev libbenchmark-dev"
  # The server and its client.
  [service]="libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler prometheus-cpp-dev libssl-dev zlib1g-dev"
  # What tools/check.sh takes beside that.
  [check]="git clang-format-14 openssl"
  # The Python package, and FAISS's own Python module for the plugin's tests.
  [python]="python3-dev python3-venv python3-pip python3-numpy python3-faiss"
  # clang-tidy, and clang with its sanitizer and OpenMP runtimes for the fuzz preset.
  [develop]="clang-14 clang-tidy-14 libclang-rt-14-dev libomp-14-dev"
  # tools/check_neon.sh: a cross compiler, an emulator, GoogleTest's source.
  [cross]="g++ cmake ninja-build ccache python3 g++-aarch64-linux-gnu qemu-user googletest"
)

[ $# -gt 0 ] || set -- build
wanted=()
for group in "$@"; do
  [ -n "${groups[$group]:-}" ] || { echo "setup.sh: no group '$group' (${!groups[*]})" >&2; exit 2; }
  read -r -d '' -a names <<<"${groups[$group]}" || true
  wanted+=("${names[@]}")
done

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "setup.sh: no apt here; make sure that you have the counterparts of: ${wanted[*]}" >&2
  exit 0
fi

missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || state=absent
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "setup.sh: run as root: apt-get install ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" \
    >"$log" 2>&1 || { cat "$log" >&2; echo "setup.sh: apt-get $1 failed" >&2; exit 1; }
}
echo "Installing ${#missing[@]} packages: ${missing[*]}"
quietly update
quietly install -y --no-install-recommends "${missing[@]}"
