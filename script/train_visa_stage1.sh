#!/usr/bin/env bash
# VISA-FSS, stage 1, on abdominal MR (CHAOST2); DATASET=SABS for CT. It needs the registration of the same fold and says
# which command makes it; script/reproduce.sh visa CHAOST2 does everything. bash script/train_visa_stage1.sh [key=value ...]
exec bash "$(dirname "$0")/_run.sh" training.py CHAOST2 visa "$@" stage=1
