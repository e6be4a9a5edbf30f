#!/usr/bin/env bash
# Tests a 2D method on cardiac MR (CMR). bash script/test_cmr_2D.sh [METHOD] [key=value ...], --help for more
exec bash "$(dirname "$0")/_run.sh" test.py CMR adnet "$@"
