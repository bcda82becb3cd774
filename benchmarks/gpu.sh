#!/usr/bin/env bash
# Tests and measures everything that needs a GPU, in eight minutes at most: bash benchmarks/gpu.sh [--smoke] [FOLDER]
#
# Writes FOLDER/gpu.json after each part, and FOLDER/log.txt; the default of FOLDER is $OUT. The exit status is 1 if a
# part failed. Missing packages are installed from benchmarks/wheels/, see docs/benchmarks.md. --smoke runs all parts at
# the smallest size, also without a GPU.
set -euo pipefail

smoke=()
if [ "${1:-}" = --smoke ]; then
  smoke=(--smoke)
  shift
fi
out=$(realpath -m "${1:-${OUT:?name a folder for the results}}")
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(realpath -s "$python")
cd "$(dirname "$0")/.."
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

for wheel in benchmarks/wheels/*.whl; do
  [ -e "$wheel" ] || continue
  timeout 20 "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheel" ||
    echo "$wheel could not be installed: continuing without it" >&2
done
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
timeout --kill-after=5 475 "$python" -u benchmarks/gpu.py "${smoke[@]}" "$out" 2>&1 | tee "$out/log.txt"
