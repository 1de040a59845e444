#!/usr/bin/env bash
# measure.sh FOLDER MODEL TEXT [CHUNKS]: generates a little, and prints perplexity and KL divergence of
# windows of 2,048 tokens with llama.cpp's caches of f16 and q4_0 and with ours, and what each cache
# takes. FOLDER is that of build.sh, MODEL a GGUF, TEXT a file. Our cache quantizes every token
# (no sinks, no tail), then as it does by default.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
folder=$1 model=$2 text=$3 chunks=${4:-20}
bin=$folder/build/bin
adapter=$folder/adapter/libturboquant_llama.so
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
common=(-m "$model" -f "$text" -c 2048 -b 2048 --chunks "$chunks" -t "${THREADS:-2}" -fa on)

show() { grep -hE "^turboquant|KV buffer size|Final estimate|Mean PPL|Mean    KLD|Same top p" "$1" || true; }
measure() {  # NAME, then the environment and options of a run against the halves' logits
  local name=$1
  shift
  echo "== $name"
  env "$@" "$bin/llama-perplexity" "${common[@]}" "${options[@]}" \
    --kl-divergence-base "$work/logits" --kl-divergence >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; exit 1; }
  show "$work/log"
}

echo "== generation"
LD_PRELOAD=$adapter "$bin/llama-simple" -m "$model" -n 40 "The configuration file is read" 2>"$work/log"
grep -h ^turboquant "$work/log"

echo "== f16"
"$bin/llama-perplexity" "${common[@]}" --kl-divergence-base "$work/logits" >"$work/log" 2>&1
show "$work/log"
options=(-ctk q4_0 -ctv q4_0)
measure "q4_0" A=
options=()
raw=(TURBOQUANT_KV_SINKS=0 TURBOQUANT_KV_TAIL=0)
measure "ours 4/4, every token, callback" LD_PRELOAD="$adapter" TURBOQUANT_KV_CALLBACK=1 "${raw[@]}"
if [ -f "$folder"/llama_cpp_python-*/vendor/llama.cpp/src/llama-external-attention.h ]; then
  for bits in 4/4 4/3 3/3; do
    measure "ours $bits, every token" LD_PRELOAD="$adapter" TURBOQUANT_KV_BITS=$bits "${raw[@]}"
  done
  measure "ours 4/4" LD_PRELOAD="$adapter"
fi
