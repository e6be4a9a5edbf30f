#!/usr/bin/env bash
# Tests a 3D method on cardiac MR (CMR). bash script/test_cmr_3D.sh [METHOD] [key=value ...], --help for more
exec bash "$(dirname "$0")/_run.sh" test.py CMR adnet3d "$@"
