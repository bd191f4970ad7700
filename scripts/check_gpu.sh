#!/usr/bin/env bash
# Right numbers, speed and memory on one GPU, in at most eight minutes; writes gpu_check.json. From a clone, after
# `pip install -r requirements.txt` and pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH=scripts exec "${PYTHON:-python}" -m benchmarks.gpu_check --output "${OUTPUT:-gpu_check.json}" "$@"
