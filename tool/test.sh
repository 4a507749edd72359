#!/usr/bin/env bash
# Run the tests: the fast ones, or with --slow all of them. Other arguments go to pytest.
#   bash tool/test.sh [--slow] [tests/test_demo.py -k boxes …]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

selection=()
if [ "${1:-}" = "--slow" ]; then
    selection=(-m "slow or not slow")
    shift
elif [ $# -eq 0 ]; then
    # In two processes, each file in one of them, so that what its tests share is made once. Slow tests measure times.
    selection=(-n 2 --dist loadfile)
fi
bash tool/setup_env.sh
# The arrays are small: more threads than one only get in each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest ${selection[@]+"${selection[@]}"} "$@"
