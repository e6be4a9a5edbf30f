#!/usr/bin/env bash
# Set-up, lint and all tests, in JOBS processes (default: 2).
# usage: bash script/check.sh [pytest's arguments]     such as tests/models -k odds (default: all tests)
set -euo pipefail
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
bash script/setup.sh --dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# two processes, one thread each: on few cores more threads only get in each other's way; tests/conftest.py says which
# files are begun first
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "${JOBS:-2}" --dist loadfile --no-loadscope-reorder "$@"
