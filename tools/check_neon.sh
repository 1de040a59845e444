#!/usr/bin/env bash
# check_neon.sh: cross-compiles the kernels, the quantizer and their tests for 64-bit Arm and runs
# them under qemu, less the statistics, the derivation of tables and the scalar runs, which take long
# there and show nothing new. Installs what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh cross
cmake --preset aarch64
cmake --build --preset aarch64
TURBOQUANT_FORCE_ISA=neon ctest --preset aarch64 -E 'statistics|derive_trellis|_scalar'
