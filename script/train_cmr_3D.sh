#!/usr/bin/env bash
# Trains a 3D method on cardiac MR (CMR). bash script/train_cmr_3D.sh [METHOD] [key=value ...], --help for more
exec bash "$(dirname "$0")/_run.sh" training.py CMR adnet3d "$@"
