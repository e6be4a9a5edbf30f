#!/usr/bin/env bash
# Trains a 2D method on abdominal MR (CHAOST2); DATASET=SABS for CT. bash script/train_abd_2D.sh [METHOD] [key=value ...], --help for more
exec bash "$(dirname "$0")/_run.sh" training.py CHAOST2 adnet "$@"
