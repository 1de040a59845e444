#!/usr/bin/env bash
# check.sh: installs what is missing, checks the format, builds everything and runs every test.
# The sanitizer, fuzzing, clang-tidy and aarch64 runs are separate: see CONTRIBUTING.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh build service check python
tools/format.sh --check
cmake --preset ci -DTURBOQUANT_TEST_PYTHON="$PWD/build/python/bin/python"
cmake --build --preset ci
ctest --preset ci -LE python --repeat after-timeout:2
# After the build, whose objects it takes from ccache.
tools/python_env.sh build/python || {
  [ $? -eq 3 ] || exit 1
  echo "check.sh: PyPI is out of reach here; the Python package is neither built nor tested" >&2
  exit 0
}
ctest --preset ci -L python -j 2  # theirs are not about time
