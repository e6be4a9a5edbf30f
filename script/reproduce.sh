#!/usr/bin/env bash
# All results of a method on a data set: folds, seeds, training, tests, report; what is done is not done again.
# usage: bash script/reproduce.sh METHOD DATASET [key=value ...] [--dry-run | --slurm], --help for more
set -euo pipefail
[[ -n "${DATA:-}" ]] && export DATA=$(realpath -m "$DATA")  # it was said where the user stands
words=("$@")
for i in "${!words[@]}"; do
    [[ "${words[$i]}" == *.json ]] && words[i]=$(realpath -m "${words[$i]}")
done
cd "$(dirname "$0")/.."
bash script/setup.sh
exec .venv/bin/python -m script.reproduce ${words[@]+"${words[@]}"}
