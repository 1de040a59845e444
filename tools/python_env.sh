#!/usr/bin/env bash
# python_env.sh FOLDER [EXTRA...]: a virtual environment with the Python package of this checkout and
# what its tests take. EXTRA are more packages for it that some tests skip without: llama-index-core,
# h5py. Debian's numpy, faiss and torch are seen through it. Needs tools/setup.sh build python. Exits
# with 3 when packages cannot be had from PyPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
folder=$1
shift
# pip is Debian's: it is seen through the environment too.
[ -x "$folder/bin/python" ] || /usr/bin/python3 -m venv --system-site-packages --without-pip "$folder"

install() {
  "$folder/bin/python" -m pip install --log "$folder/pip.log" --quiet --disable-pip-version-check \
    --no-compile "$@"
}

# numpy 2 is not what Debian's faiss was built against. What is there already is not asked for again,
# and a network that fails is given some time to recover.
for pause in 10 30 90 0; do
  install "numpy<2" pytest matplotlib langchain-core scikit-build-core nanobind \
    grpcio-tools grpcio-status grpcio-health-checking grpcio-reflection "$@" && break
  [ $pause -gt 0 ] || exit 3  # nothing is wrong with this checkout
  echo "python_env.sh: pip failed; again in $pause s" >&2
  sleep $pause
done
# The compiler by the name that CMake's presets use, so that ccache has most objects already.
CXX=${CXX:-c++} install --no-build-isolation --no-deps \
  --config-settings=cmake.define.TURBOQUANT_WERROR=ON .
