#!/usr/bin/env bash
# check.sh: installs what is missing, checks the format, builds everything and runs every test.
# The sanitizer, fuzzing, clang-tidy and aarch64 runs are separate: see CONTRIBUTING.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh build service check python
tools/format.sh --check
cmake --preset ci -DTURBOQUANT_TEST_PYTHON="$PWD/build/python/bin/python"
cmake --build --preset ci
tools/python_env.sh build/python  # after the build, whose objects it takes from ccache
ctest --preset ci -LE python
ctest --preset ci -L python -j 2  # theirs are not about time
