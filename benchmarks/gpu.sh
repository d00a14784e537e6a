#!/usr/bin/env bash
# Measures a machine with a GPU in at most 4 minutes, beside PyTorch if it is installed. Needs no network.
#
#   benchmarks/gpu.sh                       results in out/gpu/gpu.jsonl, one line a row
#   OUT=folder PYTHON=python3 benchmarks/gpu.sh
#   JAX_PLATFORMS=cpu benchmarks/gpu.sh --tiny    a dry run without a GPU
#
# Rows come in order of value and are written as soon as they are measured; a row that takes too long
# is ended, and the next one begins. --rows NAME ... measures some rows only.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory too
exec "${PYTHON:-python}" -m benchmarks.gpu --to "${OUT:-out/gpu}" "$@"
