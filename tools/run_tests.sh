#!/usr/bin/env bash
# Set-up, static checks, all tests. With options: set-up and those tests alone, the options being pytest's:
#   bash tools/run_tests.sh -k geometry
#   bash tools/run_tests.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
PY=$(bash tools/install_env.sh)
[ $# -gt 0 ] || bash tools/lint.sh "$(dirname "$PY")"
# two processes; each file stays in one of them, whose tests share what they made, in the order of tests/conftest.py:
# xdist's own would leave the files with one long test to the end
exec "$PY" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
