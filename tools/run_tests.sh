#!/usr/bin/env bash
# Set-up, then the tests; options are passed on to pytest:  bash tools/run_tests.sh -k geometry
set -euo pipefail
cd "$(dirname "$0")/.."
PY=$(bash tools/install_env.sh)
exec "$PY" -m pytest "$@"
