#!/usr/bin/env bash
# python_env.sh FOLDER [EXTRA...]: a virtual environment with the Python package of this checkout and
# what its tests take. EXTRA are more packages for it, such as torch. Debian's numpy and faiss are
# seen through it. Needs tools/setup.sh build python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# -ge 1 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
folder=$1
shift
[ -x "$folder/bin/python" ] || /usr/bin/python3 -m venv --system-site-packages "$folder"
log=$folder/pip.log
# numpy 2 is not what Debian's faiss was built against.
"$folder/bin/python" -m pip install --log "$log" --quiet --disable-pip-version-check "numpy<2" \
  pytest matplotlib langchain-core llama-index-core scikit-build-core nanobind ninja "$@"
"$folder/bin/python" -m pip install --log "$log" --quiet --disable-pip-version-check \
  --no-build-isolation --no-deps .
