#!/usr/bin/env bash
# VISA-FSS, stage 2, on abdominal MR (CHAOST2); DATASET=SABS for CT. It starts from the newest stage 1 of the same fold, or
# from train.start=RUN. bash script/train_visa_stage2.sh [key=value ...], --help for more
exec bash "$(dirname "$0")/_run.sh" training.py CHAOST2 visa "$@" stage=2
