#!/usr/bin/env bash
# All static checks: bash tools/lint.sh [folder of the tools; default: the environment of tools/install_env.sh]
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${1:-${ODIS_MM_VENV:-.venv}/bin}
"$BIN/ruff" check .
"$BIN/ruff" format --check .
"$BIN/mypy"
PYTHONPATH=$PWD "$BIN/lint-imports" --no-cache  # layers of the package: see docs/architecture.md
