#!/usr/bin/env bash
# measure.sh FOLDER MODEL TEXT [WINDOWS]: generates a little, then prints perplexity and KL divergence
# of windows of 2,048 tokens with llama.cpp's caches of f16 and q4_0 and with ours, and what each
# cache takes. FOLDER is that of build.sh, MODEL a GGUF, TEXT a file.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
folder=$1 model=$2 text=$3 windows=${4:-20}
adapter=$folder/adapter/libturboquant_llama.so
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() {  # NAME TYPE ENVIRONMENT...
  local name=$1 type=$2
  shift 2
  echo "== $name"
  env "$@" "$folder/adapter/window_perplexity" "$model" "$text" "$windows" "$work/file" "$type" \
    2>"$work/log" || { cat "$work/log" >&2; exit 1; }
  grep -hE "^turboquant|KV buffer size" "$work/log"
}

echo "== generation"
LD_PRELOAD=$adapter "$folder/build/bin/llama-simple" -m "$model" -n 40 \
  "The configuration file is read" 2>"$work/log"
grep -h ^turboquant "$work/log"

ours="LD_PRELOAD=$adapter"
every=(TURBOQUANT_KV_SINKS=0 TURBOQUANT_KV_TAIL=0)
run "f16" f16
run "q4_0" q4_0
run "ours 4/4, every token, over llama.cpp's own cache" f16 "$ours" TURBOQUANT_KV_CALLBACK=1 \
  "${every[@]}"
run "ours 4/4, every token" f16 "$ours" "${every[@]}"
run "ours 4/3, every token" f16 "$ours" TURBOQUANT_KV_BITS=4/3 "${every[@]}"
run "ours 3/3, every token" f16 "$ours" TURBOQUANT_KV_BITS=3/3 "${every[@]}"
run "ours 4/4, 4 sinks, tail of 64" f16 "$ours"
