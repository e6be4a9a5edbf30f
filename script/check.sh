#!/usr/bin/env bash
# Set-up, lint and all tests. Arguments go to pytest: bash script/check.sh tests/parity
set -euo pipefail
cd "$(dirname "$0")/.."
bash script/setup.sh --dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# two processes, one thread each: on few cores more threads only get in each other's way; tests/conftest.py says which
# files are begun first
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "${JOBS:-2}" --dist loadfile --no-loadscope-reorder "$@"
