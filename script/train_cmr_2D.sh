#!/usr/bin/env bash
# Trains a 2D method on cardiac MR (CMR). bash script/train_cmr_2D.sh [METHOD] [key=value ...], --help for more
exec bash "$(dirname "$0")/_run.sh" training.py CMR adnet "$@"
