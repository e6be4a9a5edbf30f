#!/usr/bin/env bash
# Makes or reuses .venv, installs requirements, compiles the extension. About a second when nothing changed.
# usage: bash script/setup.sh [--dev]        --dev: test tools too
#   PYTHON=python3.12 bash script/setup.sh   another interpreter for a new .venv (default: python3; 3.11 to 3.13)
set -euo pipefail
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."

wanted=requirements.txt
[[ "${1:-}" == "--dev" ]] && wanted=requirements-dev.txt

fail() { echo "error: $*" >&2; exit 1; }

if [[ ! -x .venv/bin/python ]]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
        || fail "$python is missing, or not 3.11, 3.12 or 3.13; install one of them, or name it with PYTHON=..."
    echo "making .venv"
    "$python" -m venv .venv || fail "cannot make .venv; on Debian and Ubuntu: apt-get install python3-venv"
fi

# A stamp holds the hash of what was installed: nothing is asked of pip while the files are the same.
stamp=.venv/installed-$wanted.sha256
hash=$(cat requirements.txt requirements-dev.txt | sha256sum)
if [[ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]]; then
    echo "installing $wanted (about 1.6 GB with torch; a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$wanted"
    echo "$hash" > "$stamp"
    [[ $wanted == requirements-dev.txt ]] && cp "$stamp" .venv/installed-requirements.txt.sha256
fi

stamp=.venv/compiled.sha256
hash=$(cat setup.py supervoxels/*.pyx supervoxels/src/* 2>/dev/null | sha256sum)
if [[ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]] || ! compgen -G "supervoxels/*.so" > /dev/null; then
    echo "compiling the supervoxel extension"
    .venv/bin/python setup.py --quiet build_ext --inplace > .venv/compile.log 2>&1 \
        || { tail -n 20 .venv/compile.log >&2; fail "the extension did not compile; a C++ compiler and Python's headers are needed (Debian: apt-get install g++ python3-dev)"; }
    echo "$hash" > "$stamp"
fi
