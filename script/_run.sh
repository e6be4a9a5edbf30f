#!/usr/bin/env bash
# The one place where train_*.sh and test_*.sh become a call of training.py or test.py.
# usage: _run.sh training.py|test.py DATASET DEFAULT_METHOD [METHOD] [key=value ...]     the environment: see --help
set -euo pipefail
[[ -n "${DATA:-}" ]] && DATA=$(realpath -m "$DATA")  # it was said where the user stands
cd "$(dirname "$0")/.."

program=$1 dataset=${DATASET:-$2} method=$3
shift 3
if [[ "${1:-}" == "-h" || "${1:-}" == "--help" ]]; then
    cat <<TEXT
usage: bash script/{train,test}_{abd,cmr}_{2D,3D}.sh [METHOD] [key=value ...]
  METHOD       a file in models/ (default $method)
  key=value    any option of config.py, such as train.steps=2000 encoder=efficientnet_lite0
environment:
  FOLDS        folds, one run each (default "0")
  DATASET      data set (default $dataset)
  DATA         folder that holds CHAOST2/, SABS/, CMR/, PHANTOM/ (default data)
TEXT
    exit 0
fi
if [[ $# -gt 0 && "$1" != *=* ]]; then
    method=$1
    shift
fi
bash script/setup.sh
for fold in ${FOLDS:-0}; do
    .venv/bin/python "$program" with "method=$method" "dataset=$dataset" "fold=$fold" "data_root=${DATA:-data}" "$@"
done
