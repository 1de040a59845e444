#!/usr/bin/env bash
# tidy.sh [PRESET [REGEX]]: clang-tidy 14 over the sources that a configured preset (dev) compiles
# and whose path matches. Installs what is missing; prints findings and fails if there are any.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=${1:-dev}
filter=${2:-.}
tools/setup.sh build develop
[ -f "build/$preset/compile_commands.json" ] || cmake --preset "$preset" >/dev/null

# clang does not know every flag of g++, and ccache is not the compiler.
commands=build/$preset/tidy
mkdir -p "$commands"
sed -e 's/ -mprefer-vector-width=[0-9]*\| -Wno-maybe-uninitialized//g' -e 's|"\([^" ]*/\)\?ccache |"|' \
  "build/$preset/compile_commands.json" >"$commands/compile_commands.json"
status=0
run-clang-tidy-14 -quiet -p "$commands" -j "$(nproc)" \
  "^$PWD/(?=(kernels|quantizer|index|tools|tests|bench)/)(?!.*\.cu$).*$filter" >"$commands/log.txt" 2>&1 ||
  status=$?
grep -q '^clang-tidy-14 ' "$commands/log.txt" || { echo "tidy.sh: no source matches" >&2; exit 2; }
grep -Ev '^(clang-tidy-14 |[0-9]+ warnings? (generated|and)|Suppressed |$)' "$commands/log.txt" || true
exit "$status"
