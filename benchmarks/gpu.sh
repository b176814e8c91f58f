#!/usr/bin/env bash
# Runs the tests that use a GPU and measures training on it, in at most 8 minutes. Writes gpu.json to this folder.
#
#     benchmarks/gpu.sh
#     DEVICE=cpu benchmarks/gpu.sh --rollouts 2    # a trial without a GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
timeout 120 "$PYTHON" -m pytest -q -k "cuda or device" tests/pipelines/collectors tests/pipelines/compiled
timeout 360 "$PYTHON" benchmarks/gpu.py --device "${DEVICE:-cuda}" "$@"
