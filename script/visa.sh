#!/usr/bin/env bash
# VISA-FSS from one command: registration, stage 1, stage 2, test with propagation; abdominal MR, DATASET=SABS for CT.
# usage: bash script/visa.sh [key=value ...]        the keys go to all four; environment as in script/run.sh
#   REGISTRATION="train.steps=2000" STAGE1="..." STAGE2="..." TEST="test.match=parts" bash script/visa.sh    to one of them
set -euo pipefail
scripts=$(dirname "$0")
step() { echo "== $1"; shift; bash "$scripts/run.sh" "$@"; }

# word splitting is meant: each variable holds several keys
for fold in ${FOLDS:-0}; do
    export FOLDS=$fold
    step "fold $fold, 1/4 registration" training.py CHAOST2 registration "$@" encoder=none ${REGISTRATION:-}
    step "fold $fold, 2/4 stage 1" training.py CHAOST2 visa "$@" ${STAGE1:-} stage=1
    step "fold $fold, 3/4 stage 2" training.py CHAOST2 visa "$@" ${STAGE2:-} stage=2
    step "fold $fold, 4/4 test" test.py CHAOST2 visa "$@" ${TEST:-}
done
