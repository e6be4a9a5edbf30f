#!/usr/bin/env bash
# Trains a 3D method on abdominal MR (CHAOST2); DATASET=SABS for CT. bash script/train_abd_3D.sh [METHOD] [key=value ...], --help for more
exec bash "$(dirname "$0")/_run.sh" training.py CHAOST2 adnet3d "$@"
