#!/usr/bin/env bash
# quickstart.sh: from a bare Debian bookworm to a searched index. Installs what is missing, builds
# the command-line tool, compresses sentence embeddings of dictionary entries to 3 bits a
# coordinate, and looks ten definitions up.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data=examples/data
[ ! -d ../shared/data/wordnet-minilm ] || data=../shared/data/wordnet-minilm  # the full set
out=build/quickstart
index=$out/wordnet.tqi
turboquant=build/release/tools/turboquant-index
progress=auto
[ -t 2 ] || progress=none

tools/setup.sh build
echo "== Building turboquant-index"
mkdir -p "$out"
{ cmake --preset release && cmake --build --preset release --target turboquant-index; } \
  >"$out/build.log" 2>&1 || { cat "$out/build.log" >&2; exit 1; }

echo "== Building a TQ3 index over $data/base.npy"
"$turboquant" build --input "$data/base.npy" --factory TQ3 --metric ip --output "$index" \
  --progress "$progress"
echo "== Ten definitions, and the entries whose embeddings are nearest"
"$turboquant" search --index "$index" --queries "$data/queries.npy" -k 3 --limit 10 \
  --text "$data/base.txt" --query-text "$data/queries.txt" --progress "$progress"
echo "== Recall of all queries against exact search"
"$turboquant" eval --index "$index" --queries "$data/queries.npy" --base "$data/base.npy" -k 10 \
  --progress "$progress"
