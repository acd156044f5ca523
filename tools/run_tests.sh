#!/usr/bin/env bash
# Set-up, static checks, all tests. With options: set-up and those tests alone, the options being pytest's:
#   bash tools/run_tests.sh -k geometry
#   bash tools/run_tests.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
PY=$(bash tools/install_env.sh)
# two processes; each file stays in one of them, whose tests share what they made, in the order of tests/conftest.py:
# xdist's own would leave the files with one long test to the end. A process that crashes is not replaced: where it had
# the last file, xdist would wait for that file's tests for ever
TESTS=("$PY" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0)
[ $# = 0 ] || exec "${TESTS[@]}" "$@"
SAID=$(mktemp)
bash tools/lint.sh "$(dirname "$PY")" >"$SAID" 2>&1 &  # beside the tests; what it says comes after them
LINT=$!
trap 'kill $LINT 2>/dev/null || true; rm -f "$SAID"' EXIT
CODE=0
"${TESTS[@]}" || CODE=$?
if nvidia-smi -L >/dev/null 2>&1; then  # the rest of the tests does not see it
  ODIS_MM_TEST_GPU=1 "$PY" -m pytest tests/test_gpu.py || CODE=$?
fi
wait $LINT || CODE=$?
cat "$SAID"
exit $CODE
