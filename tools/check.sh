#!/usr/bin/env bash
# check.sh: installs what is missing, checks the format, builds everything and runs every test.
# The sanitizer, fuzzing, clang-tidy and aarch64 runs, and those of the Python package, are separate:
# see CONTRIBUTING.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh build service check
tools/format.sh --check
cmake --preset ci
cmake --build --preset ci
ctest --preset ci
