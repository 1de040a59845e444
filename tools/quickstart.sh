#!/usr/bin/env bash
# quickstart.sh: from a bare Debian bookworm to a searched index and a running server. Installs what
# is missing, builds the programs, compresses sentence embeddings of dictionary entries to 3 bits a
# coordinate, and looks ten definitions up: in an index file, then in a server that it starts and
# stops.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data=examples/data
[ ! -d ../shared/data/wordnet-minilm ] || data=../shared/data/wordnet-minilm  # the full set
out=build/quickstart
index=$out/wordnet.tqi
turboquant=build/release/tools/turboquant-index
progress=auto
[ -t 2 ] || progress=none

tools/setup.sh build service
echo "== Building turboquant-index and turboquant-server"
mkdir -p "$out"
{ cmake --preset release && cmake --build --preset release --target turboquant-index turboquant-server; } \
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

server=build/release/service/turboquant-server
socket=unix:$out/server.sock  # a short path: sockets allow 107 bytes
rm -rf "$out/data" "$out/server.sock" "$out/push.json"
echo "== Starting turboquant-server on $socket"
"$server" --data-dir "$out/data" --listen "$socket" >"$out/server.out" 2>"$out/server.log" &
server_pid=$!
trap 'kill "$server_pid" 2>/dev/null && wait "$server_pid" || true' EXIT
for _ in $(seq 300); do
  grep -q listening "$out/server.out" && break
  kill -0 "$server_pid" 2>/dev/null || { cat "$out/server.log" >&2; exit 1; }
  sleep 0.1
done

echo "== Pushing the entries with their texts"
"$turboquant" push --server "$socket" --collection wordnet --create --factory TQ3 --metric cosine \
  --input "$data/base.npy" --text "$data/base.txt" --manifest "$out/push.json" \
  --progress "$progress"
echo "== The same definitions, answered by the server"
"$turboquant" query --server "$socket" --collection wordnet --queries "$data/queries.npy" -k 3 \
  --limit 10 --query-text "$data/queries.txt" --text-field text
"$turboquant" collections list --server "$socket"

echo "== Stopping the server"
kill "$server_pid"
wait "$server_pid"
trap - EXIT
